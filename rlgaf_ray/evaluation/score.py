"""How good a run was, in one number: what a sweep optimises."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from rlgaf_ray.metrics import METRICS, metric
from rlgaf_ray.types import Metrics

PERCENT = 100.0
WORST = -1.5  # the lowest closeness there is


def worst(quality: str) -> float:
    """The score of a run that the guard stopped, and of an evaluation without a finite number."""
    return WORST if quality in METRICS else -math.inf


def evaluation_score(row: Mapping[str, float], quality: str) -> float:
    """The score of one evaluation by the task's quality metric (``TaskTraits.quality``), higher is better.

    The metric itself, negated where lower is better; ``eval/closeness`` is 0 at best. Of a metric in percent, such as
    F1, the product quality / 100 x diversity kept x fluency kept, 0 to 1:
    ``f1 / 100 * min(1, distinct_2_ratio) * min(1, 1 / perplexity_ratio)``. More diversity than the SFT model's and a
    lower perplexity earn nothing, so that neither pays for a loss in another. ``worst`` where a number is not finite
    or absent.
    """
    shown = metric(quality)
    names = (quality, "eval/distinct_2_ratio", "eval/perplexity_ratio") if shown.percent else (quality,)
    values = [row.get(name, math.nan) for name in names]
    if not all(map(math.isfinite, values)):
        return worst(quality)
    if not shown.percent:
        return shown.sign * values[0]
    _, diversity, perplexity = values
    return values[0] / PERCENT * min(1.0, diversity) * min(1.0, 1.0 / perplexity)


def sweep_score(evaluations: Iterable[tuple[int, Metrics]], quality: str) -> float:
    """The mean ``evaluation_score`` of the evaluations in the last third of the iterations so far.

    ``evaluations``: (iteration, metrics), the newest last; those after two thirds of its iteration count, that of
    iteration 0, the SFT model's, never. A run that the guard stopped has ``worst``, which is the caller's to give.
    """
    counted = [(iteration, metrics) for iteration, metrics in evaluations if iteration > 0]
    assert counted, "no evaluation after iteration 0"
    newest = counted[-1][0]
    last_third = [evaluation_score(metrics, quality) for iteration, metrics in counted if 3 * iteration > 2 * newest]
    return sum(last_third) / len(last_third)
