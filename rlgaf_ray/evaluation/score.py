"""How good a run was, in one number: what a sweep optimises."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from rlgaf_ray.types import Metrics

PERCENT = 100.0
WORST = -1.5  # the lowest closeness there is; a run that the guard stopped has it


def evaluation_score(row: Mapping[str, float]) -> float:
    """The score of one evaluation, higher is better: ``eval/closeness`` of a sentiment task, 0 at best.

    In tasks with answers F1 / 100 x diversity kept x fluency kept, 0 to 1:
    ``f1 / 100 * min(1, distinct_2_ratio) * min(1, 1 / perplexity_ratio)``. More diversity than the SFT model's and a
    lower perplexity earn nothing, so that neither pays for a loss in another. ``WORST`` where a number is not finite.
    """
    if "eval/closeness" in row:
        return row["eval/closeness"] if math.isfinite(row["eval/closeness"]) else WORST
    quality, diversity, perplexity = row["eval/f1"], row["eval/distinct_2_ratio"], row["eval/perplexity_ratio"]
    if not all(math.isfinite(value) for value in (quality, diversity, perplexity)):
        return WORST
    return quality / PERCENT * min(1.0, diversity) * min(1.0, 1.0 / perplexity)


def sweep_score(evaluations: Iterable[tuple[int, Metrics]]) -> float:
    """The mean ``evaluation_score`` of the evaluations in the last third of the iterations so far.

    ``evaluations``: (iteration, metrics), the newest last; those after two thirds of its iteration count, that of
    iteration 0, the SFT model's, never. A run that the guard stopped has ``WORST``, which is the caller's to give.
    """
    counted = [(iteration, metrics) for iteration, metrics in evaluations if iteration > 0]
    assert counted, "no evaluation after iteration 0"
    newest = counted[-1][0]
    last_third = [evaluation_score(metrics) for iteration, metrics in counted if 3 * iteration > 2 * newest]
    return sum(last_third) / len(last_third)
