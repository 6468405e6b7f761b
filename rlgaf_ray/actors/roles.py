"""The roles on Ray: each of the plain classes of floor 3 in an actor of its own, and ``RayRoles``, who calls them.

Everything is asked for without waiting: Ray runs an actor's tasks in the order in which they were submitted, and starts
one when its arguments are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayActorError
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlgaf_ray.actors.dispatch import Call, Dispatcher, Part
from rlgaf_ray.actors.placement import Placement, actor_environment, reserve
from rlgaf_ray.config.schema import Config
from rlgaf_ray.engines.build import build_engine
from rlgaf_ray.training.discriminator import Discriminator, with_scores
from rlgaf_ray.training.learner import Learner
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


class DiscriminatorWorker(Discriminator):
    """The discriminator in an actor's own process, where an update can be told to wait for another actor's task."""

    def update_after(self, task: object, *batches: Any) -> Metrics:
        """Ray starts this only once ``task``, passed as a reference, has ended."""
        return self.update(*batches)


RolloutActor = ray.remote(RolloutWorker)
DiscriminatorActor = ray.remote(DiscriminatorWorker)
LearnerActor = ray.remote(Learner)


class ActorFailure(RuntimeError):
    """An actor died or did not answer in time: one sentence that names it."""


class RayRoles:
    """Plays ``loop.roles.Roles`` over actors in one placement group.

    New weights are put into the object store once, by the learner that returns them; all rollout workers read the
    same object without a copy. So are the discriminator's, for a learner that back-propagates through it.
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
        self.owns_group = group is None
        self.group = group or reserve(placement, timeout=min(self.timeout, STARTUP_SECONDS))

        def place(bundle: int, threads: int, gpus: float = placement.gpus_per_actor) -> dict[str, Any]:
            return {
                "num_cpus": placement.cpus_per_actor,
                "num_gpus": gpus,
                "runtime_env": {"env_vars": actor_environment(threads)},
                "scheduling_strategy": PlacementGroupSchedulingStrategy(self.group, bundle),
            }

        learner, discriminator = placement.learner_bundles[0], placement.discriminator_bundles[0]
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
        self.discriminator: Any = DiscriminatorActor.options(**place(discriminator, placement.threads)).remote(
            str(discriminator_folder), config, pad_token_id=pad_token_id, device=placement.device
        )
        self.learner: Any = LearnerActor.options(**place(learner, placement.threads)).remote(
            str(generator_folder),
            config,
            pad_token_id=pad_token_id,
            device=placement.device,
        )
        self.names: dict[Any, str] = {self.learner: "the learner", self.discriminator: "the discriminator"}
        self.names |= {worker: f"rollout worker {index}" for index, worker in enumerate(self.workers)}
        for actor in self.names:
            self._get(actor, "__ray_ready__", actor.__ray_ready__.remote())
        self.dispatcher = Dispatcher(
            [self._caller(worker) for worker in self.workers], requests_per_worker=config.rollout.requests_per_worker
        )

    def _caller(self, worker: Any) -> Call:
        def call(update: Any | None, part: Part | None) -> tuple[Metrics, list[Rollout]]:
            # Both are sent at once: the worker samples as soon as it has loaded.
            loading = None if update is None else worker.update_weights.remote(update)
            sampling = None if part is None else worker.generate.remote(part.prompts, part.sampling, part.seeds)
            metrics = {} if loading is None else self._get(worker, "update_weights", loading)
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
        ref = self.discriminator.token_scores.remote(rollouts)
        return lambda: with_scores(rollouts, *self._get(self.discriminator, "score", ref))

    def logits(self, demonstrations: Sequence[Demonstration]) -> list[float]:
        return self._get(
            self.discriminator,
            "demonstration_logits",
            self.discriminator.demonstration_logits.remote(demonstrations),
        )

    def update_discriminator(
        self, real: Sequence[Demonstration], fake: Sequence[Rollout], contrast: Sequence[Demonstration]
    ):
        ref = self.discriminator.update_after.remote(self.updates_wait_for, real, fake, contrast)
        return lambda: self._get(self.discriminator, "update", ref)

    def update_generator(self, scored: Sequence[ScoredRollout], *, iteration: int, pretraining: TextBlocks | None):
        ref = self.learner.update.remote(scored, iteration=iteration, pretraining=pretraining)
        if self.shared_cores:
            self.updates_wait_for = ref
        return lambda: self._get(self.learner, "update", ref)

    def push_weights(self, policy_version: int, *, network: PolicyNetwork = "policy"):
        return self.dispatcher.push(self.learner.weights.remote(policy_version, network=network))

    def push_discriminator(self):
        ref = self.learner.load_discriminator.remote(self.discriminator.weights.remote())
        return lambda: self._get(self.learner, "load_discriminator", ref)

    def mean_nll(self, items: Sequence[Demonstration | Rollout], model: PolicyNetwork | Literal["reference"]) -> float:
        return self._get(self.learner, "mean_nll", self.learner.mean_nll.remote(items, model=model))

    def adjust(
        self, *, learning_rate_factor: float, kl_coefficient: float | None = None, refresh: bool = False
    ) -> None:
        shared = {"learning_rate_factor": learning_rate_factor, "refresh": refresh}
        calls = [
            (self.learner, self.learner.adjust.remote(**shared, kl_coefficient=kl_coefficient)),
            (self.discriminator, self.discriminator.adjust.remote(**shared)),
        ]
        for actor, ref in calls:
            self._get(actor, "adjust", ref)

    def save(self, folder: Path) -> None:
        calls = [
            (self.learner, self.learner.save.remote(folder / "learner")),
            (self.discriminator, self.discriminator.save.remote(folder / "discriminator")),
        ]
        for actor, ref in calls:
            self._get(actor, "save", ref)

    def load(self, folder: Path, *, discriminator_version: int) -> None:
        calls = [
            (self.learner, self.learner.load.remote(folder / "learner")),
            (
                self.discriminator,
                self.discriminator.load.remote(folder / "discriminator", version=discriminator_version),
            ),
        ]
        for actor, ref in calls:
            self._get(actor, "load", ref)

    def close(self) -> None:
        """Ends the actors: removing their placement group kills what runs in it."""
        if self.owns_group:
            remove_placement_group(self.group)
        else:
            for actor in self.names:
                ray.kill(actor)
        self.dispatcher.close()

    def _get(self, actor: Any, method: str, ref: ray.ObjectRef[T]) -> T:
        name = self.names[actor]
        try:
            return ray.get(ref, timeout=self.timeout)
        except GetTimeoutError:
            raise ActorFailure(
                f"{name} did not answer {method} within {self.timeout:g} s (cluster.timeout_seconds)"
            ) from None
        except RayActorError as error:
            raise ActorFailure(f"{name} died during {method}: {error}") from error
