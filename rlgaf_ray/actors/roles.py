"""The roles on Ray: an actor class for each role, and ``RayRoles``, which calls them.

Calls are submitted without waiting: Ray runs an actor's tasks in the order of submission, each once its arguments are
available.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import ray
from ray.exceptions import RayTaskError
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlgaf_ray.actors.answers import ActorFailure, Answers
from rlgaf_ray.actors.groups import DiscriminatorWorker, LearnerWorker, RankStore, call_all
from rlgaf_ray.actors.placement import Placement, actor_environment, reserve, startup_seconds
from rlgaf_ray.actors.pool import RolloutPool
from rlgaf_ray.actors.push import WeightPush, transfer_between
from rlgaf_ray.actors.recovery import Recoveries
from rlgaf_ray.actors.rollout import RolloutWorker
from rlgaf_ray.config.discriminator import BatchNeeds
from rlgaf_ray.config.schema import Config
from rlgaf_ray.data.storage import Place
from rlgaf_ray.training.algorithm import AlgorithmFactory
from rlgaf_ray.training.algorithms import configured_algorithm
from rlgaf_ray.training.discriminator import DiscriminatorFactory, with_scores
from rlgaf_ray.training.neural_discriminator import NeuralDiscriminator
from rlgaf_ray.types import (
    Demonstration,
    Metrics,
    PolicyNetwork,
    Prompt,
    Rollout,
    SamplingSettings,
    ScoredRollout,
    TextBlocks,
)
from rlgaf_ray.weights.choice import Choice, Site

RolloutActor = ray.remote(RolloutWorker)
DiscriminatorActor = ray.remote(DiscriminatorWorker)
LearnerActor = ray.remote(LearnerWorker)


class RayRoles:
    """Implements ``loop.roles.Roles`` with actors in one placement group.

    The learner puts new weights into the object store part by part; all rollout workers read the same object without a
    copy. The discriminator's weights take the same route to a learner that back-propagates through it. Every rank of
    learner and discriminator receives the same calls; rank 0's result is returned.
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
        base_folder: Path | None = None,
        group: PlacementGroup | None = None,
        recoveries: Recoveries | None = None,
        new_discriminator: DiscriminatorFactory = NeuralDiscriminator,
        new_algorithm: AlgorithmFactory = configured_algorithm,
    ) -> None:
        """Start the actors and wait until all are ready.

        ``base_folder`` holds the generator before SFT, for configs with an SFT stage. ``group`` is a placement group
        with the placement's bundles, which ``close`` does not remove; by default one is reserved.
        ``recoveries`` counts and reports replaced workers; by default they are not reported.
        """
        self.recoveries = recoveries or Recoveries(config.cluster)
        # Concurrent updates on shared cores are slower than sequential ones (docs/benchmarks.md).
        self.shared_cores = placement.shared_cores
        self.updates_wait_for: Any = None
        self.pushed: tuple[int, PolicyNetwork] | None = None  # the engines' weights, if the learner still has them
        self.sharded = config.learner.strategy == "fsdp"
        self.synchronous = config.schedule.mode == "sync"  # all ranks are idle between two updates
        self.owns_group = group is None
        self.group = group or reserve(placement, timeout=startup_seconds(config.cluster))

        def place(bundle: int, threads: int, gpus: float = placement.gpus_per_actor) -> dict[str, Any]:
            return {
                "num_cpus": placement.cpus_per_actor,
                "num_gpus": gpus,
                "runtime_env": {"env_vars": actor_environment(threads)},
                "scheduling_strategy": PlacementGroupSchedulingStrategy(self.group, bundle),
            }

        def new_worker(index: int) -> Any:
            bundle = placement.rollout_bundles[index]
            # in-flight weight updates reach a generating engine through a second thread
            return RolloutActor.options(
                **place(bundle, placement.rollout_threads, placement.gpus_per_rollout_worker),
                max_concurrency=2 if config.weights.in_flight else None,
            ).remote(
                str(generator_folder),
                config,
                max_tokens=max_tokens,
                device=placement.device,
                threads=placement.rollout_threads,
            )

        self.answers = Answers({}, timeout=config.cluster.timeout_seconds)
        self.pool = RolloutPool(new_worker, placement, self.group, self.answers, self.recoveries, config.rollout)

        def ranks(actor: Any, bundles: Sequence[int], folder: Path, **more: Any) -> list[Any]:
            store = RankStore(len(bundles)) if len(bundles) > 1 else None
            self.stores.append(store)
            threads = max(1, placement.threads // len(bundles)) if self.shared_cores else placement.threads
            return [
                actor.options(**place(bundle, threads)).remote(
                    str(folder),
                    config,
                    pad_token_id=pad_token_id,
                    device=placement.device,
                    member=None if store is None else store.member(rank),
                    **more,
                )
                for rank, bundle in enumerate(bundles)
            ]

        self.stores: list[RankStore | None] = []  # alive as long as this object
        self.discriminators = ranks(
            DiscriminatorActor, placement.discriminator_bundles, discriminator_folder, new=new_discriminator
        )
        before_sft = {} if base_folder is None else {"base_folder": str(base_folder)}
        self.learners = ranks(
            LearnerActor, placement.learner_bundles, generator_folder, new_algorithm=new_algorithm, **before_sft
        )
        for name, actors in (("the learner", self.learners), ("the discriminator", self.discriminators)):
            for rank, actor in enumerate(actors):
                self.answers.names[actor] = name if len(actors) == 1 else f"rank {rank} of {name}"
        self.answers.names |= self.pool.names
        try:
            self.transfer = self._choose_transfer(config, placement)
            turns = self.pool.start(self.transfer.backend, in_turn=placement.engines_start_in_turn)
            starting = turns if placement.engines_start_last else list(turns)  # list: start all of them now
            for actor in list(self.answers.names):
                self.answers.get(actor, "__ray_ready__", actor.__ray_ready__.remote())
            self.pool.wait(starting)
            self.weights = WeightPush(self.transfer.backend, self.learners, self.pool.workers, config, self.answers)
        except BaseException:  # the caller gets no object to close
            self._end_actors()
            raise
        self.pool.open(self.weights)

    def _choose_transfer(self, config: Config, placement: Placement) -> Choice:
        """Choose the weight transfer before the engines are built for it; on CPU no actor has to be asked."""
        members = [*self.learners, *self.pool.workers]
        sites = [Site("")] * len(members)
        if placement.device != "cpu":
            sites = self.answers.get_all([(actor, "site", actor.site.remote()) for actor in members])
        return transfer_between(sites[: len(self.learners)], sites[len(self.learners) :], config)

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingSettings, seeds: Sequence[int]) -> list[Rollout]:
        return self.start_generate(prompts, sampling, seeds)()[0]

    def start_generate(
        self, prompts: Sequence[Prompt], sampling: SamplingSettings, seeds: Sequence[int]
    ) -> Callable[[], tuple[list[Rollout], float]]:
        if self.pool.weights_discarded:
            assert self.pushed is not None, "the engines discarded their weights and the learner has updated its own"
            self.push_weights(self.pushed[0], network=self.pushed[1])()
        return self.pool.generate(prompts, sampling, seeds)

    def recovered(self) -> tuple[int, int, int]:
        return self.recoveries.take()

    def drop_rollouts(self) -> None:
        self.pool.dispatcher.drop()

    def score(self, rollouts: Sequence[Rollout]) -> list[ScoredRollout]:
        return self.start_score(rollouts, ())()[0]

    def start_score(
        self, rollouts: Sequence[Rollout], demonstrations: Sequence[Demonstration]
    ) -> Callable[[], tuple[list[ScoredRollout], list[float]]]:
        refs = call_all(self.discriminators, "token_scores", [*rollouts, *demonstrations])

        def wait() -> tuple[list[ScoredRollout], list[float]]:
            found = self.answers.get_ranks(self.discriminators, "token_scores", refs)
            return with_scores(rollouts, demonstrations, *found)

        return wait

    def batch_needs(self) -> BatchNeeds:
        return self._ask(self.discriminators, "batch_needs")

    def update_discriminator(
        self, real: Sequence[Demonstration], fake: Sequence[Rollout], contrast: Sequence[Demonstration]
    ) -> Callable[[], Metrics]:
        refs = call_all(self.discriminators, "update_after", self.updates_wait_for, real, fake, contrast)
        return lambda: self.answers.get_ranks(self.discriminators, "update", refs)

    def update_generator(
        self, scored: Sequence[ScoredRollout], *, iteration: int, text: TextBlocks | None
    ) -> Callable[[], Metrics]:
        if self.synchronous:
            self._check_ranks()
        self.pushed = None
        refs = call_all(self.learners, "update", scored, iteration=iteration, text=text)
        if self.shared_cores:
            self.updates_wait_for = refs[0]
        return lambda: self.answers.get_ranks(self.learners, "update", refs)

    def push_weights(self, policy_version: int, *, network: PolicyNetwork = "policy") -> Callable[[], Metrics]:
        self.pushed = (policy_version, network)
        return self.pool.push(policy_version, network)

    def push_discriminator(self) -> Callable[[], Metrics]:
        update, *_ = call_all(self.discriminators, "weights")
        refs = call_all(self.learners, "load_discriminator", update)
        return lambda: self.answers.get_ranks(self.learners, "load_discriminator", refs)

    def mean_nll(self, items: Sequence[Demonstration | Rollout], model: PolicyNetwork | Literal["reference"]) -> float:
        return self._ask(self.learners, "mean_nll", items, model=model)

    def adjust(
        self, *, learning_rate_factor: float, kl_coefficient: float | None = None, refresh: bool = False
    ) -> None:
        shared = {"learning_rate_factor": learning_rate_factor, "refresh": refresh}
        learners = call_all(self.learners, "adjust", **shared, kl_coefficient=kl_coefficient)
        discriminators = call_all(self.discriminators, "adjust", **shared)
        self.answers.get_ranks(self.learners, "adjust", learners)
        self.answers.get_ranks(self.discriminators, "adjust", discriminators)

    def save(self, folder: Place) -> None:
        self._save((self.learners, "save", folder / "learner"), (self.discriminators, "save", folder / "discriminator"))

    def _save(self, *calls: tuple[Sequence[Any], str, Place]) -> None:
        started = [(actors, method, call_all(actors, method, place)) for actors, method, place in calls]
        for actors, method, refs in started:
            self.answers.get_ranks(actors, method, refs)

    def _check_ranks(self) -> None:
        """Raise ``ActorFailure`` if a rank is dead, before an update: the surviving ranks can still be saved then."""
        for actors in (self.learners, self.discriminators):
            if len(actors) > 1:
                self._ask(actors, "__ray_ready__")

    def rescue(self, folder: Place) -> None:
        """Save from the surviving ranks: one replica is enough; a sharded state needs all ranks.

        Raises ``ActorFailure`` if the surviving ranks do not hold the full state.
        """
        responsive = self.answers.responsive([*self.learners, *self.discriminators])
        saving: list[tuple[Sequence[Any], str, Place]] = []
        for name, actors in (("learner", self.learners), ("discriminator", self.discriminators)):
            surviving = [actor for actor in actors if actor in responsive]
            if len(surviving) == len(actors):
                saving.append((actors, "save", folder / name))
            elif surviving and not self.sharded:
                saving.append((surviving[:1], "save_alone", folder / name))
            else:
                raise ActorFailure(f"no surviving rank holds the full {name}")
        try:
            self._save(*saving)
        except RayTaskError as error:
            raise ActorFailure(f"the surviving ranks could not save: {error.cause}") from error

    def load(self, folder: Place, *, discriminator_version: int) -> None:
        self.pushed = None
        learners = call_all(self.learners, "load", folder / "learner")
        discriminators = call_all(self.discriminators, "load", folder / "discriminator", version=discriminator_version)
        self.answers.get_ranks(self.learners, "load", learners)
        self.answers.get_ranks(self.discriminators, "load", discriminators)

    def close(self) -> None:
        self.pool.closing = True
        self._end_actors()
        self.pool.close()

    def _end_actors(self) -> None:
        """Kill the actors; removing a placement group kills those in it."""
        if self.owns_group:
            remove_placement_group(self.group)
        else:
            for actor in self.answers.names:
                ray.kill(actor)

    def _ask(self, actors: Sequence[Any], method: str, *arguments: Any, **options: Any) -> Any:
        return self.answers.get_ranks(actors, method, call_all(actors, method, *arguments, **options))
