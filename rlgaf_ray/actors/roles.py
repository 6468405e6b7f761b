"""The roles on Ray: each of the plain classes of floor 3 in an actor of its own, and ``RayRoles``, who calls them.

Everything is asked for without waiting: Ray runs an actor's tasks in the order in which they were submitted, and starts
one when its arguments are there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlgaf_ray.actors.dispatch import Call, Dispatcher, Part
from rlgaf_ray.actors.groups import DiscriminatorWorker, LearnerWorker, MeetingPoint, call_all
from rlgaf_ray.actors.placement import Placement, actor_environment, reserve
from rlgaf_ray.config.schema import Config
from rlgaf_ray.engines.build import build_engine
from rlgaf_ray.training.discriminator import with_scores
from rlgaf_ray.types import (
    Demonstration,
    Metrics,
    PolicyNetwork,
    Prompt,
    Rollout,
    SamplingSettings,
    ScoredRollout,
    TextBlocks,
    WeightUpdate,
)

T = TypeVar("T")
STARTUP_SECONDS = 120.0
LAST_WORDS_SECONDS = 10.0  # for the other ranks, once one has failed: it may have missed one that died


class RolloutWorker:
    """A rollout engine in an actor's own process."""

    def __init__(self, folder: str, config: Config, *, max_tokens: int, device: str, threads: int) -> None:
        self.engine = build_engine(folder, config, max_tokens=max_tokens, device=device, threads=threads)

    def ready(self) -> None:
        """Answers when the engine has started."""

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingSettings, seeds: Sequence[int]) -> list[Rollout]:
        return self.engine.generate(prompts, sampling, seeds=seeds)

    def update_weights(self, update: WeightUpdate) -> Metrics:
        return self.engine.update_weights(update)


RolloutActor = ray.remote(RolloutWorker)
DiscriminatorActor = ray.remote(DiscriminatorWorker)
LearnerActor = ray.remote(LearnerWorker)


class ActorFailure(RuntimeError):
    """An actor died or did not answer in time: one sentence that names it."""


class RayRoles:
    """Plays ``loop.roles.Roles`` over actors in one placement group.

    New weights are put into the object store part by part, each once, by the learner that returns them; all rollout
    workers read the same object without a copy. So are the discriminator's, for a learner that back-propagates through
    it. Every rank of learner and discriminator is called alike; the first one's answer counts.
    """

    def __init__(
        self,
        generator_folder: Path,
        discriminator_folder: Path,
        config: Config,
        placement: Placement,
        *,
        max_tokens: int,
        pad_token_id: int,
        group: PlacementGroup | None = None,
    ) -> None:
        """``group``: one that is there already, a bundle an actor, and stays; by default one is reserved."""
        self.timeout = config.cluster.timeout_seconds
        # Two updates that compute on the same cores at once are slower than one after the other (docs/benchmarks.md).
        self.shared_cores = placement.shared_cores
        self.updates_wait_for: Any = None
        self.overlapping = config.schedule.mode == "async"  # workers may be sampling when weights are pushed
        self.owns_group = group is None
        self.group = group or reserve(placement, timeout=min(self.timeout, STARTUP_SECONDS))

        def place(bundle: int, threads: int, gpus: float = placement.gpus_per_actor) -> dict[str, Any]:
            return {
                "num_cpus": placement.cpus_per_actor,
                "num_gpus": gpus,
                "runtime_env": {"env_vars": actor_environment(threads)},
                "scheduling_strategy": PlacementGroupSchedulingStrategy(self.group, bundle),
            }

        # Any: the types of Ray's handles do not know what .remote adds to a method
        self.workers: list[Any] = [
            RolloutActor.options(**place(bundle, placement.rollout_threads, placement.gpus_per_rollout_worker)).remote(
                str(generator_folder),
                config,
                max_tokens=max_tokens,
                device=placement.device,
                threads=placement.rollout_threads,
            )
            for bundle in placement.rollout_bundles
        ]

        def ranks(actor: Any, bundles: Sequence[int], folder: Path) -> list[Any]:
            meeting = MeetingPoint(len(bundles)) if len(bundles) > 1 else None
            self.meetings.append(meeting)
            threads = max(1, placement.threads // len(bundles)) if self.shared_cores else placement.threads
            return [
                actor.options(**place(bundle, threads)).remote(
                    str(folder),
                    config,
                    pad_token_id=pad_token_id,
                    device=placement.device,
                    member=None if meeting is None else meeting.member(rank),
                )
                for rank, bundle in enumerate(bundles)
            ]

        self.meetings: list[MeetingPoint | None] = []  # they end with this object
        self.discriminators = ranks(DiscriminatorActor, placement.discriminator_bundles, discriminator_folder)
        self.learners = ranks(LearnerActor, placement.learner_bundles, generator_folder)
        self.names: dict[Any, str] = {}
        for name, actors in (("the learner", self.learners), ("the discriminator", self.discriminators)):
            for rank, actor in enumerate(actors):
                self.names[actor] = name if len(actors) == 1 else f"rank {rank} of {name}"
        self.names |= {worker: f"rollout worker {index}" for index, worker in enumerate(self.workers)}
        for actor in self.names:
            self._get(actor, "__ray_ready__", actor.__ray_ready__.remote())
        self.num_parts = self._ask(self.learners[:1], "num_parts")
        self.dispatcher = Dispatcher(
            [self._caller(worker) for worker in self.workers], requests_per_worker=config.rollout.requests_per_worker
        )

    def _caller(self, worker: Any) -> Call:
        def call(update: Sequence[ray.ObjectRef] | None, part: Part | None) -> tuple[Metrics, list[Rollout]]:
            # All are sent at once: the worker samples as soon as it has loaded.
            loading = [worker.update_weights.remote(ref) for ref in update or ()]
            sampling = None if part is None else worker.generate.remote(part.prompts, part.sampling, part.seeds)
            metrics = total([self._get(worker, "update_weights", ref) for ref in loading])
            return metrics, [] if sampling is None else self._get(worker, "generate", sampling)

        return call

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingSettings, seeds: Sequence[int]) -> list[Rollout]:
        return self.start_generate(prompts, sampling, seeds)()[0]

    def start_generate(self, prompts: Sequence[Prompt], sampling: SamplingSettings, seeds: Sequence[int]):
        return self.dispatcher.start(prompts, sampling, seeds)

    def drop_rollouts(self) -> None:
        self.dispatcher.drop()

    def score(self, rollouts: Sequence[Rollout]) -> list[ScoredRollout]:
        return self.start_score(rollouts)()

    def start_score(self, rollouts: Sequence[Rollout]):
        refs = call_all(self.discriminators, "token_scores", rollouts)
        return lambda: with_scores(rollouts, *self._answer(self.discriminators, "token_scores", refs))

    def logits(self, demonstrations: Sequence[Demonstration]) -> list[float]:
        return self._ask(self.discriminators, "demonstration_logits", demonstrations)

    def update_discriminator(
        self, real: Sequence[Demonstration], fake: Sequence[Rollout], contrast: Sequence[Demonstration]
    ):
        refs = call_all(self.discriminators, "update_after", self.updates_wait_for, real, fake, contrast)
        return lambda: self._answer(self.discriminators, "update", refs)

    def update_generator(self, scored: Sequence[ScoredRollout], *, iteration: int, pretraining: TextBlocks | None):
        refs = call_all(self.learners, "update", scored, iteration=iteration, pretraining=pretraining)
        if self.shared_cores:
            self.updates_wait_for = refs[0]
        return lambda: self._answer(self.learners, "update", refs)

    def push_weights(self, policy_version: int, *, network: PolicyNetwork = "policy"):
        parts = range(self.num_parts)
        if self.num_parts == 1 or self.overlapping:
            # A worker that samples takes them later: all parts wait for it in the object store.
            return self.dispatcher.push(
                [call_all(self.learners, "weights_after", policy_version, part, network)[0] for part in parts]
            )
        calls: list[list[ray.ObjectRef]] = []  # of each part, every worker's
        for part in parts:
            # A part is made once the last but one is loaded: the object store holds two, however large the model is.
            loaded = calls[part - 2] if part > 1 else []
            update, *_ = call_all(self.learners, "weights_after", policy_version, part, network, *loaded)
            calls.append([worker.update_weights.remote(update) for worker in self.workers])
        noted = self.dispatcher.push([])  # the workers have their calls already, before all that is asked for from here

        def slowest() -> Metrics:
            rows = [
                total([self._get(worker, "update_weights", refs[index]) for refs in calls])
                for index, worker in enumerate(self.workers)
            ]
            noted()
            return {name: max(row[name] for row in rows) for name in rows[0]}

        return slowest

    def push_discriminator(self):
        update, *_ = call_all(self.discriminators, "weights")
        refs = call_all(self.learners, "load_discriminator", update)
        return lambda: self._answer(self.learners, "load_discriminator", refs)

    def mean_nll(self, items: Sequence[Demonstration | Rollout], model: PolicyNetwork | Literal["reference"]) -> float:
        return self._ask(self.learners, "mean_nll", items, model=model)

    def adjust(
        self, *, learning_rate_factor: float, kl_coefficient: float | None = None, refresh: bool = False
    ) -> None:
        shared = {"learning_rate_factor": learning_rate_factor, "refresh": refresh}
        learners = call_all(self.learners, "adjust", **shared, kl_coefficient=kl_coefficient)
        discriminators = call_all(self.discriminators, "adjust", **shared)
        self._answer(self.learners, "adjust", learners)
        self._answer(self.discriminators, "adjust", discriminators)

    def save(self, folder: Path) -> None:
        learners = call_all(self.learners, "save", folder / "learner")
        discriminators = call_all(self.discriminators, "save", folder / "discriminator")
        self._answer(self.learners, "save", learners)
        self._answer(self.discriminators, "save", discriminators)

    def load(self, folder: Path, *, discriminator_version: int) -> None:
        learners = call_all(self.learners, "load", folder / "learner")
        discriminators = call_all(self.discriminators, "load", folder / "discriminator", version=discriminator_version)
        self._answer(self.learners, "load", learners)
        self._answer(self.discriminators, "load", discriminators)

    def close(self) -> None:
        """Ends the actors: removing their placement group kills what runs in it."""
        if self.owns_group:
            remove_placement_group(self.group)
        else:
            for actor in self.names:
                ray.kill(actor)
        self.dispatcher.close()

    def _ask(self, actors: Sequence[Any], method: str, *arguments: Any, **options: Any) -> Any:
        return self._answer(actors, method, call_all(actors, method, *arguments, **options))

    def _answer(self, actors: Sequence[Any], method: str, refs: Sequence[ray.ObjectRef]) -> Any:
        """The first rank's answer, once all have answered. A rank that died is named, not those that missed it."""
        if len(actors) == 1:
            return self._get(actors[0], method, refs[0])
        waiting, deadline = dict(zip(refs, actors, strict=True)), time.monotonic() + self.timeout
        failed: RayTaskError | None = None
        while waiting:
            left = max(0.0, deadline - time.monotonic())
            done, _ = ray.wait(list(waiting), timeout=left if failed is None else min(left, LAST_WORDS_SECONDS))
            if not done and failed is not None:
                break
            for ref in done or list(waiting)[:1]:
                try:
                    self._get(waiting.pop(ref), method, ref, timeout=1.0 if done else 0.0)
                except RayTaskError as error:
                    failed = failed or error
        if failed is not None:
            raise failed
        return ray.get(refs[0])

    def _get(self, actor: Any, method: str, ref: ray.ObjectRef[T], *, timeout: float | None = None) -> T:
        name = self.names[actor]
        try:
            return ray.get(ref, timeout=self.timeout if timeout is None else timeout)
        except GetTimeoutError:
            raise ActorFailure(
                f"{name} did not answer {method} within {self.timeout:g} s (cluster.timeout_seconds)"
            ) from None
        except RayActorError as error:
            raise ActorFailure(f"{name} died during {method}: {error}") from error


def total(rows: Sequence[Metrics]) -> Metrics:
    """Name by name, of the parts of one push."""
    return {name: sum(row[name] for row in rows) for name in (rows[0] if rows else ())}
