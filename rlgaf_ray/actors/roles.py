"""The roles on Ray: each of the plain classes of floor 3 in an actor of its own, and ``RayRoles``, who calls them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlgaf_ray.actors.placement import Placement, actor_environment, reserve
from rlgaf_ray.actors.transfer import Call, GpuTransfer, LearnerWorker
from rlgaf_ray.config.schema import Config
from rlgaf_ray.engines.base import RolloutEngine
from rlgaf_ray.engines.build import build_engine
from rlgaf_ray.engines.vllm import VLLMEngine
from rlgaf_ray.training.discriminator import Discriminator, with_scores
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
from rlgaf_ray.weights.choice import Backend, Choice, Site, choose_transfer, current_site
from rlgaf_ray.weights.manifest import DeviceUpdate
from rlgaf_ray.weights.nccl import Rendezvous

T = TypeVar("T")
STARTUP_SECONDS = 120.0


class RolloutWorker:
    """A rollout engine in an actor's own process, there once ``start`` has said how its weights will come.

    With ``rollout.sleep_level`` the engine holds a GPU's memory only while it generates, and from a push of weights on.
    """

    def __init__(self, folder: str, config: Config, *, max_tokens: int, device: str, threads: int) -> None:
        self.build = partial(build_engine, folder, config, max_tokens=max_tokens, device=device, threads=threads)
        self.device = device
        self.sleeps = config.rollout.sleep_level > 0

    def site(self) -> Site:
        return current_site(self.device)

    def start(self, transfer: Backend) -> None:
        self.engine: RolloutEngine = self.build(transfer=transfer)

    def meet(self, rendezvous: Rendezvous, index: int) -> None:
        assert isinstance(self.engine, VLLMEngine)
        self.engine.meet(rendezvous, index)

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingSettings, seeds: Sequence[int]) -> list[Rollout]:
        if not self.sleeps:
            return self.engine.generate(prompts, sampling, seeds=seeds)
        assert isinstance(self.engine, VLLMEngine)
        self.engine.wake_up()
        rollouts = self.engine.generate(prompts, sampling, seeds=seeds)
        self.engine.sleep()
        return rollouts

    def update_weights(self, update: WeightUpdate | DeviceUpdate) -> Metrics:
        return self.engine.update_weights(update)


class DiscriminatorWorker(Discriminator):
    """The discriminator in an actor's own process, where an update can be told to wait for another actor's task."""

    def update_after(self, task: object, *batches: Any) -> Metrics:
        """Ray starts this only once ``task``, passed as a reference, has ended."""
        return self.update(*batches)


RolloutActor = ray.remote(RolloutWorker)
DiscriminatorActor = ray.remote(DiscriminatorWorker)
LearnerActor = ray.remote(LearnerWorker)


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
        self.shared_cores = placement.device == "cpu"
        self.updates_wait_for: Any = None
        self.pushed: tuple[int, PolicyNetwork] | None = None  # what the engines hold, while the learner holds it too
        self.engines_forget = config.rollout.sleep_level == 2
        self.forgotten = False
        self.owns_group = group is None
        self.group = group or reserve(placement, timeout=min(self.timeout, STARTUP_SECONDS))
        options: dict[str, Any] = {
            "num_cpus": placement.cpus_per_actor,
            "num_gpus": placement.gpus_per_actor,
        }

        def place(bundle: int, threads: int) -> dict[str, Any]:
            return options | {
                "runtime_env": {"env_vars": actor_environment(threads)},
                "scheduling_strategy": PlacementGroupSchedulingStrategy(self.group, bundle),
            }

        learner, discriminator, *workers = range(placement.num_actors)
        # Any: the types of Ray's handles do not know what .remote adds to a method
        self.workers: list[Any] = [
            # while it generates, an engine that takes weights in mid-flight is told of them by a second thread
            RolloutActor.options(
                **place(bundle, placement.rollout_threads), max_concurrency=2 if config.weights.mid_flight else None
            ).remote(
                str(generator_folder),
                config,
                max_tokens=max_tokens,
                device=placement.device,
                threads=placement.rollout_threads,
            )
            for bundle in workers
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
        self.transfer = self._choose_transfer(config, placement)
        starting = [(worker, "start", worker.start.remote(self.transfer.backend)) for worker in self.workers]
        for actor in self.names:
            self._get(actor, "__ray_ready__", actor.__ray_ready__.remote())
        for worker, method, ref in starting:
            try:
                self._get(worker, method, ref)
            except RayTaskError as error:
                raise ActorFailure(f"{self.names[worker]} could not start its engine: {error.cause}") from error
        self.gpu_transfer: GpuTransfer | None = None
        if self.transfer.backend != "object_store":
            self.gpu_transfer = GpuTransfer(
                self.transfer.backend,
                self.learner,
                self.workers,
                gpus_per_engine=config.rollout.tensor_parallel_size,
                wait=self._get_all,
            )

    def _choose_transfer(self, config: Config, placement: Placement) -> Choice:
        """Before the engines start: vLLM's are made for one way. On CPU nobody has to be asked."""
        members = [self.learner, *self.workers]
        sites = [Site("")] * len(members)
        if placement.device != "cpu":
            sites = self._get_all([(actor, "site", actor.site.remote()) for actor in members])
        return choose_transfer(
            config.weights.transfer,
            learners=sites[:1],
            engines=sites[1:],
            vllm=config.rollout.engine != "transformers",
        )

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingSettings, seeds: Sequence[int]) -> list[Rollout]:
        if self.forgotten:
            assert self.pushed is not None, "the engines forgot their weights, and the learner has others by now"
            self.push_weights(self.pushed[0], network=self.pushed[1])()
        self.forgotten = self.engines_forget
        bounds = np.linspace(0, len(prompts), len(self.workers) + 1).round().astype(int)
        share = sampling.samples_per_prompt
        calls = [
            (worker, worker.generate.remote(prompts[start:end], sampling, seeds[start * share : end * share]))
            for worker, start, end in zip(self.workers, bounds[:-1], bounds[1:], strict=True)
            if end > start
        ]
        return [rollout for worker, ref in calls for rollout in self._get(worker, "generate", ref)]

    def score(self, rollouts: Sequence[Rollout]) -> list[ScoredRollout]:
        ref = self.discriminator.token_scores.remote(rollouts)
        return with_scores(rollouts, *self._get(self.discriminator, "score", ref))

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
        self.pushed = None
        ref = self.learner.update.remote(scored, iteration=iteration, pretraining=pretraining)
        if self.shared_cores:
            self.updates_wait_for = ref
        return lambda: self._get(self.learner, "update", ref)

    def push_weights(self, policy_version: int, *, network: PolicyNetwork = "policy"):
        self.pushed, self.forgotten = (policy_version, network), False
        if self.gpu_transfer is not None:
            pushed = self.gpu_transfer.push(policy_version, network)
            return lambda: _largest(pushed())
        update = self.learner.weights.remote(policy_version, network=network)
        calls = [(worker, worker.update_weights.remote(update)) for worker in self.workers]
        return lambda: _largest([self._get(worker, "update_weights", ref) for worker, ref in calls])

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
        self.pushed = None
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
            return
        for actor in self.names:
            ray.kill(actor)

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

    def _get_all(self, calls: Sequence[Call]) -> list[Any]:
        """The answers in order. The first failure ends the wait: the others may be waiting for the one that failed."""
        pending = {ref: (actor, method) for actor, method, ref in calls}
        deadline = time.monotonic() + self.timeout
        while pending:
            done, _ = ray.wait(list(pending), timeout=max(0.0, deadline - time.monotonic()))
            if not done:
                silent = ", ".join(f"{self.names[actor]} ({method})" for actor, method in pending.values())
                raise ActorFailure(f"no answer within {self.timeout:g} s (cluster.timeout_seconds) from {silent}")
            self._get(*pending.pop(done[0]), done[0])
        return [ray.get(ref) for _, _, ref in calls]


def _largest(rows: Sequence[Metrics]) -> Metrics:
    """Of the slowest worker."""
    return {name: max(row[name] for row in rows) for name in rows[0]}
