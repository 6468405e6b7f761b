"""A pool of rollout workers: balances requests over them and replaces a worker that fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import RayTaskError
from ray.util.placement_group import PlacementGroup

from rlgaf_ray.actors.answers import (
    ActorFailure,
    ActorNotStarted,
    ActorsNotPlaced,
    ActorTimeout,
    ActorUnusable,
    Answers,
    PendingCall,
    UpstreamFailure,
)
from rlgaf_ray.actors.dispatch import Call, Dispatcher, Part
from rlgaf_ray.actors.layout import Placement
from rlgaf_ray.actors.placement import missing_resources, startup_seconds
from rlgaf_ray.actors.push import Load, WeightPush
from rlgaf_ray.actors.recovery import Process, Recoveries, kill
from rlgaf_ray.config.rollout import RolloutSection
from rlgaf_ray.types import Metrics, PolicyNetwork, Prompt, Rollout, SamplingSettings
from rlgaf_ray.weights.choice import Backend

T = TypeVar("T")


class RolloutPool:
    """All rollout workers of a run.

    It starts in three steps, so that other actors can start in between: the constructor creates the workers, ``start``
    their engines, and ``open`` accepts requests.
    """

    def __init__(
        self,
        new_worker: Callable[[int], Any],
        placement: Placement,
        group: PlacementGroup,
        answers: Answers,
        recoveries: Recoveries,
        settings: RolloutSection,
    ) -> None:
        """``new_worker(index)`` creates a rollout actor in ``group``; it is called again for a replacement."""
        self.new_worker = new_worker
        self.bundles = placement.rollout_bundles
        self.group = group
        # Any: Ray's handle types do not cover .remote on a method
        self.workers: list[Any] = [new_worker(index) for index in range(len(self.bundles))]
        self.unplaced: set[int] = set()  # workers that wait for resources
        self.answers = answers
        self.recoveries = recoveries
        self.settings = settings
        self.weights_discarded = False  # by sleep level 2
        self.closing = False
        self.processes: list[Process]
        self.backend: Backend
        self.weights: WeightPush
        self.dispatcher: Dispatcher

    @property
    def names(self) -> dict[Any, str]:
        """The workers' names in error messages, for ``answers``."""
        return {worker: f"rollout worker {index}" for index, worker in enumerate(self.workers)}

    def start(self, backend: Backend, *, in_turn: bool) -> Iterator[list[PendingCall]]:
        """Start the engines: all at once, or with ``in_turn`` one per item taken from the iterator."""
        self.backend = backend
        size = 1 if in_turn else len(self.workers)
        for first in range(0, len(self.workers), size):
            yield [(worker, "start", worker.start.remote(backend)) for worker in self.workers[first : first + size]]

    def wait(self, started: Iterator[list[PendingCall]] | list[list[PendingCall]]) -> None:
        """Wait until all engines have started. Raises ``ActorNotStarted`` with the cause if one fails."""
        self.processes = [self._started(*call) for calls in started for call in calls]

    def open(self, weights: WeightPush) -> None:
        """Accept requests; ``weights`` sends a push to a worker."""
        self.weights = weights
        calls = [self._caller(index) for index in range(len(self.workers))]
        self.dispatcher = Dispatcher(calls, requests_per_worker=self.settings.requests_per_worker)

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingSettings, seeds: Sequence[int]
    ) -> Callable[[], tuple[list[Rollout], float]]:
        """Start sampling, as ``loop.roles.Roles.start_generate``."""
        self.answers.get_all(self._empty_caches())
        rollouts = self.dispatcher.start(prompts, sampling, seeds)
        return rollouts if self.settings.sleep_level == 0 else lambda: self._then_sleep(rollouts())

    def push(self, policy_version: int, network: PolicyNetwork) -> Callable[[], Metrics]:
        """Start a weight push, as ``loop.roles.Roles.push_weights``."""
        self.weights_discarded = False
        self._empty_caches()  # runs before the learner's part of the push
        return self.weights.push(policy_version, network, self.dispatcher)

    def close(self) -> None:
        """End the dispatcher's threads, once the workers have ended."""
        self.dispatcher.close()

    def _empty_caches(self) -> list[PendingCall]:
        """Have the other actors free their cached GPU memory, if the engines sleep and may need it to wake up."""
        if self.settings.sleep_level == 0:
            return []
        others = [actor for actor in list(self.answers.names) if actor not in self.workers]
        return [(actor, "empty_cache", actor.empty_cache.remote()) for actor in others]

    def _then_sleep(self, rollouts: T) -> T:
        """Put the engines to sleep after a complete batch: sleep level 2 discards weights that later parts need."""
        awake = [worker for index, worker in enumerate(self.workers) if index not in self.unplaced]
        self.answers.get_all([(worker, "sleep", worker.sleep.remote()) for worker in awake])
        self.weights_discarded = self.settings.sleep_level == 2
        return rollouts

    def _started(self, worker: Any, method: str, ref: ray.ObjectRef[Process]) -> Process:
        try:
            return self.answers.get(worker, method, ref)
        except RayTaskError as error:
            name = self.answers.names[worker]
            raise ActorNotStarted(f"{name} could not start its engine: {error.cause}") from error

    def _caller(self, index: int) -> Call:
        """Return the call that serves worker ``index``; if the worker fails, it is replaced and the call repeated."""
        held: Load | None = None

        def ask(worker: Any, load: Load | None, part: Part | None) -> tuple[Metrics, list[Rollout]]:
            loading = [] if load is None else load(worker)
            if self.weights.in_flight:  # a worker with two threads does not run its calls in order
                self.weights.loaded(worker, loading)
            # Otherwise submit both calls at once: the worker samples as soon as it has loaded the weights.
            sampling = None if part is None else worker.generate.remote(part.prompts, part.sampling, part.seeds)
            metrics = self.weights.loaded(worker, loading)
            return metrics, [] if sampling is None else self.answers.get(worker, "generate", sampling)

        def call(load: Load | None, part: Part | None) -> tuple[Metrics, list[Rollout]]:
            nonlocal held
            if self.weights.in_object_store:
                held = load or held
            while True:
                try:
                    return ask(self.workers[index], load, part)
                except UpstreamFailure:  # a new worker would fail too
                    raise
                except ActorFailure as failure:
                    self._replace(index, failure, part)
                    load = held
                    if index in self.dispatcher.absent:  # other workers sample the part
                        part = None

        return call

    def _replace(self, index: int, failure: ActorFailure, part: Part | None) -> None:
        """Replace a failed worker. Raises ``failure`` if the current weights are not in the object store.

        If the replacement fails to start, it is replaced too: Ray may have placed it on a node that had just died.
        """
        if self.closing or not self.weights.in_object_store:
            raise failure
        num_prompts = 0 if part is None else len(part.prompts)
        remedy = f"replacing it; {num_prompts} prompts are sampled again"
        self.recoveries.record(failure, remedy)
        failed = self.workers[index]
        if isinstance(failure, ActorTimeout | ActorUnusable):
            kill(failed, self.processes[index])
        while True:
            worker = self.workers[index] = self.new_worker(index)
            self.answers.names[worker] = self.answers.names.pop(failed)
            starting = worker.start.remote(self.backend)
            try:
                self._wait_for_resources(index, starting, part)
                self.processes[index] = self._started(worker, "start", starting)
                break
            except ActorFailure as another:
                if self.closing:
                    raise
                ray.kill(worker)  # it may still hold its bundle
                self.recoveries.record(another, remedy)
                failed = worker
        self.recoveries.worker_replaced(num_prompts)

    def _wait_for_resources(self, index: int, starting: ray.ObjectRef[Process], part: Part | None) -> None:
        """Wait until a worker has its resources, and report every wait in vain; the other workers go on without it.

        Each wait counts as one more failure if no other worker is left. Raises ``TooManyFailures``.
        """
        patience, waited = startup_seconds(self.recoveries.settings), 0.0
        while not ray.wait([starting], timeout=patience, fetch_local=False)[0]:
            missing = missing_resources(self.group, self.bundles[index])
            if missing is None:
                break
            waited += patience
            self.unplaced.add(index)
            failure = ActorsNotPlaced(f"rollout worker {index} has had no resources for {waited:g} s: {missing}")
            num_workers = len(self.workers)
            if others := num_workers - len(self.unplaced):
                self.dispatcher.leave(index, part)
                self.recoveries.report(f"{failure}: continuing with {others} of {num_workers} rollout workers")
            else:
                self.recoveries.record(failure, "waiting, as no rollout worker is left")
        self.unplaced.discard(index)
