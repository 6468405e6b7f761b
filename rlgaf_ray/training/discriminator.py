"""What the loop asks of a discriminator. ``NeuralDiscriminator`` is the built-in one; any other can take its place."""

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
    """Scores responses (higher: more like a demonstration), and learns to tell rollouts from demonstrations.

    In a group every rank is called alike, with all sequences; what a method returns is the same on all of them.
    """

    group: Group
    """``ALONE`` once its other ranks failed: what is saved then has to be complete."""

    @property
    def needs(self) -> BatchNeeds:
        """The rows that ``update`` asks for beside the rollouts."""
        ...

    def token_scores(self, items: Sequence[Response]) -> tuple[np.ndarray, int]:
        """What each response token adds to its logit, row after row in one array (float32 [sum of R]), and the version.

        One array travels between processes, and the items, which the caller has, do not. Scores of full responses:
        ``scores_at_the_end``. The version is the number of updates.
        """
        ...

    def update(
        self, real: Sequence[Demonstration], fake: Sequence[Rollout], contrast: Sequence[Demonstration] = ()
    ) -> Metrics:
        """One update; the rows are those that ``needs`` asks for. Metrics: ``discriminator/*``."""
        ...

    def weights(self) -> WeightUpdate | None:
        """Rank 0's current weights, for a learner that back-propagates through them; None where it has none."""
        ...

    def adjust(self, *, learning_rate_factor: float, refresh: bool = False) -> None:
        """Multiply the config's learning rate from now on; ``refresh``: forget the optimiser's moments."""
        ...

    def save(self, folder: Place) -> None:
        """Write a checkpoint; rank 0 alone writes."""
        ...

    def load(self, folder: Place, *, version: int) -> None:
        """Restore a checkpoint, written after ``version`` updates."""
        ...


class DiscriminatorFactory(Protocol):
    """Builds a discriminator in its own process; with Ray the factory is pickled."""

    def __call__(self, folder: Path, config: Config, *, pad_token_id: int, device: str, group: Group) -> Discriminator:
        """A discriminator, in the process that it is to live in. On Ray the factory is pickled.

        ``folder``: the warm-up's, a Hugging Face folder with a tokenizer.
        """
        ...


def scores_at_the_end(items: Sequence[Response], scores: Sequence[float]) -> np.ndarray:
    """One score a response as ``Discriminator.token_scores`` gives them: all of it at the last token."""
    ends = np.cumsum([len(item.response_ids) for item in items])
    parts = np.zeros(ends[-1], np.float32)
    parts[ends - 1] = scores
    return parts


def with_scores(
    rollouts: Sequence[Rollout], demonstrations: Sequence[Demonstration], token_scores: np.ndarray, version: int
) -> tuple[list[ScoredRollout], list[float]]:
    """What ``Discriminator.token_scores`` gave for rollouts and then demonstrations: the former with theirs, the
    latter's logits."""
    items: list[Response] = [*rollouts, *demonstrations]
    ends = np.cumsum([len(item.response_ids) for item in items])
    rows = np.split(token_scores, ends[:-1])
    scored = [
        ScoredRollout(rollout, float(row.sum()), version, token_scores=row)
        for rollout, row in zip(rollouts, rows[: len(rollouts)], strict=True)
    ]
    return scored, [float(row.sum()) for row in rows[len(rollouts) :]]
