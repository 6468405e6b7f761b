"""The ``Roles`` protocol, implemented in one process by ``loop/local.py`` and on Ray by ``actors/roles.py``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from rlgaf_ray.config.discriminator import BatchNeeds
from rlgaf_ray.data.storage import Place
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

Pending = Callable[[], Metrics]
"""Started work; calling it waits for completion and returns its metrics."""

PendingRollouts = Callable[[], tuple[list[Rollout], float]]
"""Requested rollouts; calling it waits for them and also returns the seconds spent sampling."""

PendingScores = Callable[[], tuple[list[ScoredRollout], list[float]]]
"""Requested scores of rollouts and demonstrations; calling it waits for them."""


class Roles(Protocol):
    """Rollout workers, discriminator and learner, as the loop calls them."""

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingSettings, seeds: Sequence[int]) -> list[Rollout]:
        """Sample responses in the order of the prompts, from the weights pushed last."""
        ...

    def start_generate(
        self, prompts: Sequence[Prompt], sampling: SamplingSettings, seeds: Sequence[int]
    ) -> PendingRollouts:
        """Start ``generate`` without waiting, with the weights pushed last before this call.

        With in-flight weight updates a response is labelled with the oldest version that it used.
        """
        ...

    def drop_rollouts(self) -> None:
        """Discard the rollouts in flight: no caller will wait for them."""
        ...

    def recovered(self) -> tuple[int, int, int]:
        """Count recoveries since the last call: replaced rollout workers, prompts sampled again for them, and rollbacks
        to a checkpoint after the failure of another actor."""
        ...

    def score(self, rollouts: Sequence[Rollout]) -> list[ScoredRollout]:
        """Score rollouts with the current discriminator."""
        ...

    def start_score(self, rollouts: Sequence[Rollout], demonstrations: Sequence[Demonstration]) -> PendingScores:
        """Start ``score`` without waiting, after the updates requested so far; also scores ``demonstrations``."""
        ...

    def batch_needs(self) -> BatchNeeds:
        """Return the rows that a discriminator update requires."""
        ...

    def update_discriminator(
        self, real: Sequence[Demonstration], fake: Sequence[Rollout], contrast: Sequence[Demonstration]
    ) -> Pending:
        """Start one update on demonstrations and rollouts; ``contrast``: rows that ``batch_needs`` asks for."""
        ...

    def update_generator(self, scored: Sequence[ScoredRollout], *, iteration: int, text: TextBlocks | None) -> Pending:
        """Start one update on scored rollouts; ``text``: demonstrations for algorithms that read some."""
        ...

    def push_weights(self, policy_version: int, *, network: PolicyNetwork = "policy") -> Pending:
        """Start pushing a network of the learner to every engine as ``policy_version``, after the requested updates.

        Rollouts requested earlier use the weights of that time. An engine may skip a version that no requested rollout
        needs.
        """
        ...

    def push_discriminator(self) -> Pending:
        """Start copying the frozen discriminator to the learner, after the updates requested so far."""
        ...

    def mean_nll(self, items: Sequence[Demonstration | Rollout], model: PolicyNetwork | Literal["reference"]) -> float:
        """Return the mean NLL in nats per response token under a network of the learner or the frozen SFT model."""
        ...

    def adjust(
        self, *, learning_rate_factor: float, kl_coefficient: float | None = None, refresh: bool = False
    ) -> None:
        """Scale the configured learning rates of generator and discriminator from now on.

        ``kl_coefficient``: replaces the current one. ``refresh``: reset the optimisers' moments.
        """
        ...

    def save(self, folder: Place) -> None:
        """Write ``learner/`` and ``discriminator/`` into ``folder``."""
        ...

    def rescue(self, folder: Place) -> None:
        """Do ``save`` after an actor failure, with the surviving actors, if no update was requested since the last one
        completed. Raises ``RuntimeError`` if they do not hold the full state."""
        ...

    def load(self, folder: Place, *, discriminator_version: int) -> None:
        """Restore what ``save`` wrote; ``discriminator_version``: the number of its updates."""
        ...

    def close(self) -> None:
        """Release engines and processes."""
        ...
