"""Held-out accuracy of the discriminator, on excluded demonstrations and fresh rollouts.

Rollouts are scored before the discriminator trains on them, so their scores are held out. The real rows are
demonstrations excluded from all streams, prompts included: a prompt that occurs with generated responses only would
reveal their label.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlgaf_ray.errors import UserError
from rlgaf_ray.types import Demonstration, Metrics

# Not run.seed, so that runs with different seeds are compared on the same rows.
SPLIT_SEED = 20230602
ROWS_PER_ITERATION = 16  # a quarter of the default batch; 1.7 % of the iteration time on two cores
MIN_RATIO = 2  # at most one in two demonstrations is held out
READINGS = ("held_out_accuracy", "held_out_logit_gap", "overfit_gap")


def split_held_out(num_demonstrations: int, num_held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Split rows (int64) into training rows, ascending, and held-out rows, shuffled; ``UserError`` for too many."""
    if num_held_out * MIN_RATIO > num_demonstrations:
        raise UserError(
            f"discriminator.held_out={num_held_out} needs {num_held_out * MIN_RATIO} demonstrations or more, but the "
            f"task has only {num_demonstrations}: set discriminator.held_out to at most "
            f"{num_demonstrations // MIN_RATIO}"
        )
    order = np.random.default_rng(SPLIT_SEED).permutation(num_demonstrations)
    return np.sort(order[num_held_out:]), order[:num_held_out]


def contrast_without(
    rows: np.ndarray, demonstrations: Sequence[Demonstration], contrast: Sequence[Demonstration]
) -> Sequence[Demonstration]:
    """Drop contrast rows whose prompt occurs only in the held-out ``rows`` of the demonstrations."""
    held = set(rows.tolist())
    known = {item.prompt_ids.tobytes() for row, item in enumerate(demonstrations) if row not in held}
    unknown = {demonstrations[row].prompt_ids.tobytes() for row in held} - known
    return [item for item in contrast if item.prompt_ids.tobytes() not in unknown] if unknown else contrast


class HeldOutAccuracy:
    """Held-out metrics, averaged over the iterations that it takes to score all held-out ``rows`` once.

    Each iteration scores a few rows in turn and compares them with its rollouts under the same discriminator version,
    because the level of the logits drifts between updates. The decision threshold is the midpoint between the medians
    of both groups, not 0: contrast rows push all logits down, a pairwise loss does not fix their level, and the
    generator learns from differences only. An accuracy below 0.5 means that rollouts score above demonstrations.

    With ``trained_rows`` as many of those are scored too. overfit_gap = AUC(trained) - AUC(held out), against the same
    rollouts, measures memorisation. A falling held-out AUC alone would not, since it also falls as the generator
    improves.
    """

    def __init__(self, rows: np.ndarray, trained_rows: np.ndarray | None = None) -> None:
        self.rows = rows
        self.trained_rows = np.random.default_rng(SPLIT_SEED).permutation([] if trained_rows is None else trained_rows)
        self.count = min(ROWS_PER_ITERATION, len(rows))
        self.num_iterations = math.ceil(len(rows) / ROWS_PER_ITERATION)
        self.names = READINGS if len(self.trained_rows) else READINGS[:2]
        self.readings: list[tuple[float, ...]] = []  # in the order of ``names``

    def rows_of(self, iteration: int) -> list[int]:
        """Rows to score in this iteration (from 1) in round-robin order: held-out rows, then trained ones."""
        turn = (iteration - 1) * self.count + np.arange(self.count)
        return [int(rows[each % len(rows)]) for rows in (self.rows, self.trained_rows) if len(rows) for each in turn]

    def observe(self, real: Sequence[float], fake: Sequence[float]) -> Metrics:
        """Add a reading and return the averages.

        ``real``, ``fake``: logits of ``rows_of`` the iteration and of its rollouts, before the discriminator's updates.
        Non-finite logits are skipped; without any reading the result is empty.
        """
        held_out, trained, generated = np.array(real[: self.count]), np.array(real[self.count :]), np.array(fake)
        threshold = (np.median(held_out) + np.median(generated)) / 2
        accuracy = ((held_out > threshold).mean() + (generated <= threshold).mean()) / 2
        reading = [float(accuracy), float(held_out.mean() - generated.mean())]
        if len(trained):
            reading.append(area(trained, generated) - area(held_out, generated))
        if np.isfinite([*real, *fake]).all():
            self.readings = [*self.readings, tuple(reading)][-self.num_iterations :]
        if not self.readings:
            return {}
        columns = zip(self.names, zip(*self.readings, strict=True), strict=True)
        return {f"discriminator/{name}": sum(values) / len(values) for name, values in columns}

    def state_dict(self) -> dict[str, Any]:
        return {"readings": [list(reading) for reading in self.readings]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore readings; those without the gap are dropped if it is measured now, and vice versa."""
        self.readings = [tuple(reading) for reading in state["readings"] if len(reading) == len(self.names)]


def area(real: np.ndarray, fake: np.ndarray) -> float:
    """Area under the ROC curve, P(real > fake) + P(real = fake) / 2. Shapes: [M], [N]."""
    above, equal = real[:, None] > fake, real[:, None] == fake
    return float(above.mean() + equal.mean() / 2)
