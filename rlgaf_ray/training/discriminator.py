"""The protocol between the training loop and a discriminator; ``NeuralDiscriminator`` is the built-in one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from rlgaf_ray.config.discriminator import BatchNeeds
from rlgaf_ray.config.schema import Config
from rlgaf_ray.data.lengths import Response
from rlgaf_ray.data.storage import Place
from rlgaf_ray.training.distributed import Group
from rlgaf_ray.types import Demonstration, Metrics, Rollout, ScoredRollout, WeightUpdate


class Discriminator(Protocol):
    """Scores responses (higher: more like a demonstration) and learns to separate rollouts from demonstrations.

    Every rank of a group makes the same calls with all sequences and gets the same results.
    """

    group: Group
    """Set to ``SINGLE_PROCESS`` if the other ranks failed; ``save`` must then write a full state."""

    @property
    def needs(self) -> BatchNeeds:
        """The rows that ``update`` needs in addition to the rollouts."""
        ...

    def token_scores(self, items: Sequence[Response]) -> tuple[np.ndarray, int]:
        """Return each response token's contribution to the logit, concatenated (float32 [sum of R]), and the version.

        A single array is cheap to send between processes; the caller already has the items. For sequence-level scores
        use ``scores_at_the_end``. The version is the number of updates.
        """
        ...

    def update(
        self, real: Sequence[Demonstration], fake: Sequence[Rollout], contrast: Sequence[Demonstration] = ()
    ) -> Metrics:
        """Run one update on the rows described by ``needs`` and return ``discriminator/*`` metrics."""
        ...

    def weights(self) -> WeightUpdate | None:
        """Return rank 0's current weights for a learner that back-propagates through them, or None if not supported."""
        ...

    def adjust(self, *, learning_rate_factor: float, refresh: bool = False) -> None:
        """Scale the configured learning rate from now on; ``refresh`` resets the optimiser's moments."""
        ...

    def save(self, folder: Place) -> None:
        """Write a checkpoint; called on every rank, written by rank 0."""
        ...

    def load(self, folder: Place, *, version: int) -> None:
        """Restore a checkpoint, written after ``version`` updates."""
        ...


class DiscriminatorFactory(Protocol):
    """Builds a discriminator in its own process; with Ray the factory is pickled."""

    def __call__(self, folder: Path, config: Config, *, pad_token_id: int, device: str, group: Group) -> Discriminator:
        """Build the discriminator. ``folder``: the warm-up's result, a Hugging Face folder with a tokenizer."""
        ...


def scores_at_the_end(items: Sequence[Response], scores: Sequence[float]) -> np.ndarray:
    """Convert sequence-level scores to the format of ``Discriminator.token_scores``, all on the last token."""
    ends = np.cumsum([len(item.response_ids) for item in items])
    parts = np.zeros(ends[-1], np.float32)
    parts[ends - 1] = scores
    return parts


def with_scores(
    rollouts: Sequence[Rollout], demonstrations: Sequence[Demonstration], token_scores: np.ndarray, version: int
) -> tuple[list[ScoredRollout], list[float]]:
    """Split the ``Discriminator.token_scores`` of rollouts followed by demonstrations.

    Returns the scored rollouts and the demonstrations' logits.
    """
    items: list[Response] = [*rollouts, *demonstrations]
    ends = np.cumsum([len(item.response_ids) for item in items])
    rows = np.split(token_scores, ends[:-1])
    scored = [
        ScoredRollout(rollout, float(row.sum()), version, token_scores=row)
        for rollout, row in zip(rollouts, rows[: len(rollouts)], strict=True)
    ]
    return scored, [float(row.sum()) for row in rows[len(rollouts) :]]
