"""All roles in one process, without Ray, for tests, debugging and small machines. Computes the same numbers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rlgaf_ray.config.discriminator import BatchNeeds
from rlgaf_ray.config.schema import Config
from rlgaf_ray.data.storage import Place
from rlgaf_ray.engines.base import RolloutEngine
from rlgaf_ray.engines.build import build_engine
from rlgaf_ray.loop.roles import Pending, PendingRollouts, PendingScores
from rlgaf_ray.training.algorithm import AlgorithmFactory
from rlgaf_ray.training.algorithms import configured_algorithm
from rlgaf_ray.training.discriminator import Discriminator, DiscriminatorFactory, with_scores
from rlgaf_ray.training.distributed import SINGLE_PROCESS
from rlgaf_ray.training.learner import Learner
from rlgaf_ray.training.neural_discriminator import NeuralDiscriminator
from rlgaf_ray.types import (
    Demonstration,
    PolicyNetwork,
    Prompt,
    Rollout,
    SamplingSettings,
    ScoredRollout,
    TextBlocks,
)


class LocalRoles:
    """Implements ``Roles`` synchronously: every call does its work at once, and pending results are ready."""

    def __init__(self, engine: RolloutEngine, discriminator: Discriminator, learner: Learner) -> None:
        self.engine = engine
        self.discriminator = discriminator
        self.learner = learner

    @classmethod
    def build(
        cls,
        generator: Path,
        discriminator: Path,
        config: Config,
        *,
        max_tokens: int,
        pad_token_id: int,
        base_folder: Path | None = None,
        threads: int | None = None,
        new_discriminator: DiscriminatorFactory = NeuralDiscriminator,
        new_algorithm: AlgorithmFactory = configured_algorithm,
    ) -> LocalRoles:
        """Build the configured roles on CPU from the model folders of the warm-ups; ``threads``: of the engine."""
        return cls(
            build_engine(generator, config, max_tokens=max_tokens, threads=threads),
            new_discriminator(discriminator, config, pad_token_id=pad_token_id, device="cpu", group=SINGLE_PROCESS),
            Learner(generator, config, pad_token_id=pad_token_id, base_folder=base_folder, new_algorithm=new_algorithm),
        )

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingSettings, seeds: Sequence[int]) -> list[Rollout]:
        return self.engine.generate(prompts, sampling, seeds=seeds)

    def start_generate(
        self, prompts: Sequence[Prompt], sampling: SamplingSettings, seeds: Sequence[int]
    ) -> PendingRollouts:
        start = time.perf_counter()
        rollouts = self.generate(prompts, sampling, seeds)
        seconds = time.perf_counter() - start
        return lambda: (rollouts, seconds)

    def drop_rollouts(self) -> None:
        pass  # none are in flight

    def recovered(self) -> tuple[int, int, int]:
        return 0, 0, 0

    def score(self, rollouts: Sequence[Rollout]) -> list[ScoredRollout]:
        return self.start_score(rollouts, ())()[0]

    def start_score(self, rollouts: Sequence[Rollout], demonstrations: Sequence[Demonstration]) -> PendingScores:
        found = self.discriminator.token_scores([*rollouts, *demonstrations])
        scores = with_scores(rollouts, demonstrations, *found)
        return lambda: scores

    def batch_needs(self) -> BatchNeeds:
        return self.discriminator.needs

    def update_discriminator(
        self, real: Sequence[Demonstration], fake: Sequence[Rollout], contrast: Sequence[Demonstration]
    ) -> Pending:
        metrics = self.discriminator.update(real, fake, contrast)
        return lambda: metrics

    def update_generator(self, scored: Sequence[ScoredRollout], *, iteration: int, text: TextBlocks | None) -> Pending:
        metrics = self.learner.update(scored, iteration=iteration, text=text)
        return lambda: metrics

    def push_weights(self, policy_version: int, *, network: PolicyNetwork = "policy") -> Pending:
        metrics = self.engine.update_weights(self.learner.weights(policy_version, network=network))
        return lambda: metrics

    def push_discriminator(self) -> Pending:
        update = self.discriminator.weights()
        assert update is not None, "this discriminator has no weights to back-propagate through"
        metrics = self.learner.load_discriminator(update)
        return lambda: metrics

    def mean_nll(self, items: Sequence[Demonstration | Rollout], model: PolicyNetwork | Literal["reference"]) -> float:
        return self.learner.mean_nll(items, model=model)

    def adjust(
        self, *, learning_rate_factor: float, kl_coefficient: float | None = None, refresh: bool = False
    ) -> None:
        self.learner.adjust(learning_rate_factor=learning_rate_factor, kl_coefficient=kl_coefficient, refresh=refresh)
        self.discriminator.adjust(learning_rate_factor=learning_rate_factor, refresh=refresh)

    def save(self, folder: Place) -> None:
        self.learner.save(folder / "learner")
        self.discriminator.save(folder / "discriminator")

    def rescue(self, folder: Place) -> None:
        self.save(folder)  # there are no other processes that could fail

    def load(self, folder: Place, *, discriminator_version: int) -> None:
        self.learner.load(folder / "learner")
        self.discriminator.load(folder / "discriminator", version=discriminator_version)

    def close(self) -> None:
        self.engine.close()
