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

from rlgaf_ray.errors import UserError
from rlgaf_ray.types import Demonstration, Metrics

# Not run.seed: seeds are compared on the same rows.
SPLIT_SEED = 20230602
ROWS_PER_ITERATION = 16  # a quarter of the default batch: 1.7 % of an iteration on two cores
LEAST_PART = 2  # at most one in two demonstrations is set apart
READINGS = ("held_out_accuracy", "held_out_logit_gap", "overfit_gap")


def set_apart(num_demonstrations: int, num_held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers (int64): to train on, rising, and to hold out, in random order. ``UserError`` for too many."""
    if num_held_out * LEAST_PART > num_demonstrations:
        raise UserError(
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

    With ``trained_rows`` as many of those are scored beside them. AUC(trained) - AUC(held out), against the same
    rollouts, is what the discriminator knows of its demonstrations alone. A falling held-out AUC would not show that:
    it also falls where the generator improves.
    """

    def __init__(self, rows: np.ndarray, trained_rows: np.ndarray | None = None) -> None:
        self.rows = rows
        self.trained_rows = np.random.default_rng(SPLIT_SEED).permutation([] if trained_rows is None else trained_rows)
        self.count = min(ROWS_PER_ITERATION, len(rows))
        self.num_iterations = math.ceil(len(rows) / ROWS_PER_ITERATION)
        self.names = READINGS if len(self.trained_rows) else READINGS[:2]
        self.readings: list[tuple[float, ...]] = []  # in the order of ``names``

    def rows_of(self, iteration: int) -> list[int]:
        """The rows to score in this iteration (from 1), held-out ones first: they take turns."""
        turn = (iteration - 1) * self.count + np.arange(self.count)
        return [int(rows[each % len(rows)]) for rows in (self.rows, self.trained_rows) if len(rows) for each in turn]

    def observe(self, real: Sequence[float], fake: Sequence[float]) -> Metrics:
        """Logits of ``rows_of`` an iteration and of its rollouts, by the discriminator as it is before its updates.

        Those that are not finite are no reading; before the first one nothing is returned.
        """
        first, trained, second = np.array(real[: self.count]), np.array(real[self.count :]), np.array(fake)
        middle = (np.median(first) + np.median(second)) / 2
        accuracy = ((first > middle).mean() + (second <= middle).mean()) / 2
        reading = [float(accuracy), float(first.mean() - second.mean())]
        if len(trained):
            reading.append(area(trained, second) - area(first, second))
        if np.isfinite([*real, *fake]).all():
            self.readings = [*self.readings, tuple(reading)][-self.num_iterations :]
        if not self.readings:
            return {}
        columns = zip(self.names, zip(*self.readings, strict=True), strict=True)
        return {f"discriminator/{name}": sum(values) / len(values) for name, values in columns}

    def state_dict(self) -> dict[str, Any]:
        return {"readings": [list(reading) for reading in self.readings]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Readings that were made with ``trained_rows`` and now are not, or the other way round, do not count."""
        self.readings = [tuple(reading) for reading in state["readings"] if len(reading) == len(self.names)]


def area(real: np.ndarray, fake: np.ndarray) -> float:
    """P(real > fake) + P(equal) / 2, the area under the ROC curve. Shapes: [M], [N]."""
    above, equal = real[:, None] > fake, real[:, None] == fake
    return float(above.mean() + equal.mean() / 2)
