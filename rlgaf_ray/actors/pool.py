"""The rollout workers as one: requests are shared out among them, and one that is lost is replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import RayTaskError

from rlgaf_ray.actors.answers import ActorFailure, ActorNotStarted, ActorSilent, ActorSpent, Answers, Asked, SourceLost
from rlgaf_ray.actors.dispatch import Call, Dispatcher, Part
from rlgaf_ray.actors.push import Load, WeightPush
from rlgaf_ray.actors.recovery import Process, Recoveries, kill
from rlgaf_ray.config.rollout import RolloutSection
from rlgaf_ray.types import Metrics, PolicyNetwork, Prompt, Rollout, SamplingSettings
from rlgaf_ray.weights.choice import Backend

T = TypeVar("T")


class RolloutPool:
    """Built in three steps, between which the other actors start: workers, their engines, and ``open``."""

    def __init__(
        self,
        new_worker: Callable[[int], Any],
        num_workers: int,
        answers: Answers,
        recoveries: Recoveries,
        settings: RolloutSection,
    ) -> None:
        """``new_worker(index)`` creates a rollout actor; it is called again for a replacement."""
        self.new_worker = new_worker
        # Any: the types of Ray's handles do not know what .remote adds to a method
        self.workers: list[Any] = [new_worker(index) for index in range(num_workers)]
        self.answers = answers
        self.recoveries = recoveries
        self.settings = settings
        self.forgotten = False  # engines of sleep level 2 have lost their weights
        self.closing = False
        self.processes: list[Process]
        self.backend: Backend
        self.weights: WeightPush
        self.dispatcher: Dispatcher

    @property
    def names(self) -> dict[Any, str]:
        """What ``answers`` shall call the workers."""
        return {worker: f"rollout worker {index}" for index, worker in enumerate(self.workers)}

    def start(self, backend: Backend, *, in_turn: bool) -> Iterator[list[Asked]]:
        """Asks the engines to start, all of them or ``in_turn``: the next one when the next item is taken."""
        self.backend = backend
        size = 1 if in_turn else len(self.workers)
        for first in range(0, len(self.workers), size):
            yield [(worker, "start", worker.start.remote(backend)) for worker in self.workers[first : first + size]]

    def wait(self, started: Iterator[list[Asked]] | list[list[Asked]]) -> None:
        """Until all engines have started. Raises ``ActorNotStarted`` with the cause where one cannot."""
        self.processes = [self._started(*call) for calls in started for call in calls]

    def open(self, weights: WeightPush) -> None:
        """From here requests are taken. ``weights`` knows how a push reaches a worker."""
        self.weights = weights
        calls = [self._caller(index) for index in range(len(self.workers))]
        self.dispatcher = Dispatcher(calls, requests_per_worker=self.settings.requests_per_worker)

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingSettings, seeds: Sequence[int]
    ) -> Callable[[], tuple[list[Rollout], float]]:
        """As ``loop.roles.Roles.start_generate``."""
        rollouts = self.dispatcher.start(prompts, sampling, seeds)
        return rollouts if self.settings.sleep_level == 0 else lambda: self._then_sleep(rollouts())

    def push(self, policy_version: int, network: PolicyNetwork) -> Callable[[], Metrics]:
        """As ``loop.roles.Roles.push_weights``."""
        self.forgotten = False
        return self.weights.push(policy_version, network, self.dispatcher)

    def close(self) -> None:
        """The workers have ended, or are about to: none is replaced any more."""
        self.dispatcher.close()

    def _then_sleep(self, rollouts: T) -> T:
        """Once a whole batch is there: between its parts, sleep level 2 would forget what the next is sampled from."""
        self.answers.of_all([(worker, "sleep", worker.sleep.remote()) for worker in self.workers])
        self.forgotten = self.settings.sleep_level == 2
        return rollouts

    def _started(self, worker: Any, method: str, ref: ray.ObjectRef[Process]) -> Process:
        try:
            return self.answers.get(worker, method, ref)
        except RayTaskError as error:
            name = self.answers.names[worker]
            raise ActorNotStarted(f"{name} could not start its engine: {error.cause}") from error

    def _caller(self, index: int) -> Call:
        """The call that serves worker ``index``. A lost worker is replaced, and the call repeated on the new one."""
        held: Load | None = None

        def ask(worker: Any, load: Load | None, part: Part | None) -> tuple[Metrics, list[Rollout]]:
            loading = [] if load is None else load(worker)
            if self.weights.mid_flight:  # a worker of two threads keeps no order
                self.weights.loaded(worker, loading)
            # Elsewhere all are sent at once: the worker samples as soon as it has loaded.
            sampling = None if part is None else worker.generate.remote(part.prompts, part.sampling, part.seeds)
            metrics = self.weights.loaded(worker, loading)
            return metrics, [] if sampling is None else self.answers.get(worker, "generate", sampling)

        def call(load: Load | None, part: Part | None) -> tuple[Metrics, list[Rollout]]:
            nonlocal held
            if self.weights.kept:
                held = load or held
            while True:
                try:
                    return ask(self.workers[index], load, part)
                except SourceLost:  # a new worker would miss it as well
                    raise
                except ActorFailure as failure:
                    self._replace(index, failure, 0 if part is None else len(part.prompts))
                    load = held

        return call

    def _replace(self, index: int, failure: ActorFailure, num_prompts: int) -> None:
        """Put a new worker where one was lost. Raises ``failure`` where it cannot be given the current weights.

        If the replacement fails to start, it is replaced too: Ray may have placed it on a node that had just died.
        """
        if self.closing or not self.weights.kept:
            raise failure
        remedy = f"it is replaced, and {num_prompts} prompts are answered again"
        self.recoveries.lost(failure, remedy)
        lost = self.workers[index]
        if isinstance(failure, ActorSilent | ActorSpent):
            kill(lost, self.processes[index])
        while True:
            worker = self.workers[index] = self.new_worker(index)
            self.answers.names[worker] = self.answers.names.pop(lost)
            try:
                self.processes[index] = self._started(worker, "start", worker.start.remote(self.backend))
                break
            except ActorFailure as another:
                if self.closing:
                    raise
                ray.kill(worker)  # it may hold its place in the group still
                self.recoveries.lost(another, remedy)
                lost = worker
        self.recoveries.worker_replaced(num_prompts)
