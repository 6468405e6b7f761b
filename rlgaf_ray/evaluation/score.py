"""How stable a run was, in one number: what a sweep optimises."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from rlgaf_ray.types import Metrics

PERCENT = 100.0


def stability(row: Mapping[str, float]) -> float:
    """Quality x diversity kept x fluency kept of one evaluation, 0 to 1.

    ``clip(gap_closed, 0, 1) * min(1, distinct_2_ratio) * min(1, 1 / perplexity_ratio)``; F1 / 100 stands for the
    first in tasks with answers. Exaggeration beyond real text, more diversity than the SFT model's and a lower
    perplexity earn nothing, so that none of them pays for a loss in another. 0 where a number is not finite.
    """
    quality = row["eval/gap_closed"] if "eval/gap_closed" in row else row["eval/f1"] / PERCENT
    diversity, perplexity = row["eval/distinct_2_ratio"], row["eval/perplexity_ratio"]
    if not all(math.isfinite(value) for value in (quality, diversity, perplexity)):
        return 0.0
    return min(1.0, max(0.0, quality)) * min(1.0, diversity) * min(1.0, 1.0 / perplexity)


def stability_score(evaluations: Iterable[tuple[int, Metrics]]) -> float:
    """The mean ``stability`` of the evaluations in the last third of the iterations so far.

    ``evaluations``: (iteration, metrics), the newest last; those after two thirds of its iteration count, that of
    iteration 0, the SFT model's, never. A run that the guard stopped has 0, which is the caller's to give.
    """
    counted = [(iteration, metrics) for iteration, metrics in evaluations if iteration > 0]
    assert counted, "no evaluation after iteration 0"
    newest = counted[-1][0]
    last_third = [stability(metrics) for iteration, metrics in counted if 3 * iteration > 2 * newest]
    return sum(last_third) / len(last_third)
