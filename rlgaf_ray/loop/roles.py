"""What the loop needs of its roles. ``loop/local.py`` plays them in one process, ``actors/roles.py`` on Ray."""

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
"""Work that was started; calling it waits for the end and gives its metrics."""

PendingRollouts = Callable[[], tuple[list[Rollout], float]]
"""Rollouts that were asked for; calling it waits for them and gives the seconds that sampling took beside them."""

PendingScores = Callable[[], tuple[list[ScoredRollout], list[float]]]
"""Scores that were asked for, of rollouts and of demonstrations."""


class Roles(Protocol):
    """Rollout workers, discriminator and learner, as the loop calls them."""

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingSettings, seeds: Sequence[int]) -> list[Rollout]:
        """Samples of each prompt in the prompts' order, from the weights that were pushed last."""
        ...

    def start_generate(
        self, prompts: Sequence[Prompt], sampling: SamplingSettings, seeds: Sequence[int]
    ) -> PendingRollouts:
        """``generate`` without waiting. The weights are those that were pushed last when this is called.

        An engine that takes newer weights in the middle of a response would give it the oldest version it used.
        """
        ...

    def drop_rollouts(self) -> None:
        """Forget the rollouts that were started: nobody is going to wait for them."""
        ...

    def recovered(self) -> tuple[int, int, int]:
        """Since the last call: rollout workers that were replaced, prompts that were answered again for it, and how
        often the run went back to a checkpoint because another actor was lost."""
        ...

    def score(self, rollouts: Sequence[Rollout]) -> list[ScoredRollout]:
        """Score rollouts with the current discriminator."""
        ...

    def start_score(self, rollouts: Sequence[Rollout], demonstrations: Sequence[Demonstration]) -> PendingScores:
        """``score`` without waiting, by the discriminator as it is after the updates asked for so far.

        ``demonstrations`` are scored with them.
        """
        ...

    def batch_needs(self) -> BatchNeeds:
        """The rows that an update of the discriminator asks for."""
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
        """Give every engine this network of the learner, after the updates asked for so far, under this version.

        Rollouts that were asked for before come from the weights of then. An engine that none of them needs this
        version from may pass it over for a newer one.
        """
        ...

    def push_discriminator(self) -> Pending:
        """Give the learner a frozen copy of the discriminator, as it is after the updates asked for so far."""
        ...

    def mean_nll(self, items: Sequence[Demonstration | Rollout], model: PolicyNetwork | Literal["reference"]) -> float:
        """Nats per response token under a network of the learner, or under the frozen SFT model."""
        ...

    def adjust(
        self, *, learning_rate_factor: float, kl_coefficient: float | None = None, refresh: bool = False
    ) -> None:
        """Multiply the config's learning rates of generator and discriminator from now on.

        ``kl_coefficient``: replaces the one in use. ``refresh``: the optimisers forget their moments.
        """
        ...

    def save(self, folder: Place) -> None:
        """Write ``learner/`` and ``discriminator/`` below ``folder``."""
        ...

    def rescue(self, folder: Place) -> None:
        """``save`` after the loss of an actor, by those that are left, where nobody was asked for an update since the
        last one ended. Raises ``RuntimeError`` where they do not have everything."""
        ...

    def load(self, folder: Place, *, discriminator_version: int) -> None:
        """Restore what ``save`` wrote; ``discriminator_version``: the number of its updates."""
        ...

    def close(self) -> None:
        """Release engines and processes."""
        ...
