"""The discriminator's accuracy on what it has not been trained on: demonstrations set apart, and fresh rollouts.

Rollouts are scored before the discriminator trains on them, so each iteration's scores are held out as they come.
Real rows are a part of the demonstrations that no stream ever draws: they are lost to training, prompts included (a
prompt that came with generated answers alone would give itself away).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlgaf_ray.types import Demonstration, Metrics

# Not run.seed: seeds are compared on the same rows.
SPLIT_SEED = 20230602
ROWS_PER_ITERATION = 16  # a quarter of the default batch: 1.7 % of an iteration on two cores
LEAST_PART = 2  # at most one in two demonstrations is set apart


def set_apart(num_demonstrations: int, num_held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers (int64): to train on, rising, and to hold out, in random order. ``ValueError`` for too many."""
    if num_held_out * LEAST_PART > num_demonstrations:
        raise ValueError(
            f"discriminator.held_out={num_held_out} needs {num_held_out * LEAST_PART} demonstrations or more, but the "
            f"task has only {num_demonstrations}: set discriminator.held_out to at most "
            f"{num_demonstrations // LEAST_PART}"
        )
    order = np.random.default_rng(SPLIT_SEED).permutation(num_demonstrations)
    return np.sort(order[num_held_out:]), order[:num_held_out]


def contrast_without(
    rows: np.ndarray, demonstrations: Sequence[Demonstration], contrast: Sequence[Demonstration]
) -> Sequence[Demonstration]:
    """The contrast demonstrations but those whose prompt is that of a held-out row and of no other demonstration."""
    held = set(rows.tolist())
    known = {item.prompt_ids.tobytes() for row, item in enumerate(demonstrations) if row not in held}
    unknown = {demonstrations[row].prompt_ids.tobytes() for row in held} - known
    return [item for item in contrast if item.prompt_ids.tobytes() not in unknown] if unknown else contrast


class HeldOutAccuracy:
    """A mean over the newest iterations, as many as it takes to score each of the held-out ``rows`` once.

    Each iteration scores a few of them, in turn, and holds them against its rollouts: logits of one discriminator only
    are compared, because their level drifts from update to update. What lies above the middle between the medians of
    the two is called real. Not above 0: contrast, labelled fake too, pushes all logits down, a pairwise loss leaves
    their level open, and the generator learns from differences alone. Below 0.5 the rollouts please the discriminator
    more than the demonstrations do.
    """

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows
        self.num_iterations = math.ceil(len(rows) / ROWS_PER_ITERATION)
        self.readings: list[tuple[float, float]] = []  # accuracy, logit gap

    def rows_of(self, iteration: int) -> list[int]:
        """The rows to score in this iteration (from 1): they take turns."""
        count = min(ROWS_PER_ITERATION, len(self.rows))
        return self.rows[((iteration - 1) * count + np.arange(count)) % len(self.rows)].tolist()

    def observe(self, real: Sequence[float], fake: Sequence[float]) -> Metrics:
        """Logits of ``rows_of`` an iteration and of its rollouts, by the discriminator as it is before its updates.

        Those that are not finite are no reading; before the first one nothing is returned.
        """
        first, second = np.array(real), np.array(fake)
        middle = (np.median(first) + np.median(second)) / 2
        accuracy = ((first > middle).mean() + (second <= middle).mean()) / 2
        gap = float(first.mean() - second.mean())
        if math.isfinite(gap):
            self.readings = [*self.readings, (float(accuracy), gap)][-self.num_iterations :]
        if not self.readings:
            return {}
        accuracies, gaps = zip(*self.readings, strict=True)
        return {
            "discriminator/held_out_accuracy": sum(accuracies) / len(accuracies),
            "discriminator/held_out_logit_gap": sum(gaps) / len(gaps),
        }

    def state_dict(self) -> dict[str, Any]:
        return {"readings": [list(reading) for reading in self.readings]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.readings = [(accuracy, gap) for accuracy, gap in state["readings"]]
