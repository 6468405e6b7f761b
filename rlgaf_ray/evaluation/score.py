"""The score of a run, a single number for sweeps to optimise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from rlgaf_ray.metrics import METRICS, metric
from rlgaf_ray.types import Metrics

PERCENT = 100.0
WORST = -1.5  # lower bound of closeness


def worst(quality: str) -> float:
    """Return the score of a run stopped by the guard, or of an evaluation with missing or non-finite metrics."""
    return WORST if quality in METRICS else -math.inf


def evaluation_score(row: Mapping[str, float], quality: str) -> float:
    """Score one evaluation by the task's quality metric (``TaskTraits.quality``); higher is better.

    The score is the metric, negated if lower is better; ``eval/closeness`` is at most 0. For a metric in percent, such
    as F1, it is quality / 100 x diversity kept x fluency kept, in 0 to 1:
    ``f1 / 100 * min(1, distinct_2_ratio) * min(1, 1 / perplexity_ratio)``. Higher diversity or lower perplexity than
    the SFT model's adds nothing, so neither can offset a lower quality. ``worst`` if a value is missing or non-finite.
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
    """Average ``evaluation_score`` over the evaluations in the last third of the iterations so far.

    ``evaluations``: (iteration, metrics), newest last. Evaluations after two thirds of the newest iteration count;
    iteration 0, the SFT model, never does. For a run stopped by the guard the caller uses ``worst`` instead.
    """
    counted = [(iteration, metrics) for iteration, metrics in evaluations if iteration > 0]
    assert counted, "no evaluation after iteration 0"
    newest = counted[-1][0]
    last_third = [evaluation_score(metrics, quality) for iteration, metrics in counted if 3 * iteration > 2 * newest]
    return sum(last_third) / len(last_third)
