"""Results of a comparison: each method with its best decoding, and against the baseline at equal diversity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import numpy as np

from rlgaf_ray.compare.decoding import Decoding, curves
from rlgaf_ray.compare.measuring import Measured
from rlgaf_ray.compare.methods import METHODS
from rlgaf_ray.compare.statistics import Difference, bootstrap, holm
from rlgaf_ray.compare.trial import Trial
from rlgaf_ray.config.compare import BuiltInMethod, MethodName
from rlgaf_ray.report.quality import at_level
from rlgaf_ray.types import EvaluationPart, Metrics


@dataclass(frozen=True)
class Row:
    """Results of one method over its replicates, on test prompts. Validation prompts only select the best decoding."""

    name: MethodName
    count: int
    best: Decoding  # highest mean quality on the validation prompts
    quality: float  # with the best decoding
    at_one: float | None  # quality at temperature 1 without truncation, if measured
    entropy_at_one: float | None
    distinct_2: float  # with the best decoding
    best_difference: Difference  # from the baseline, each with its own best decoding
    interval: tuple[float, float] | None  # 95 % interval of best_difference: bootstrap over replicates, then prompts
    p: float  # p-value of best_difference with Holm's correction over the methods
    level: str  # diversity measure that level_difference holds equal: entropy or distinct_2
    level_difference: Difference | None  # from the baseline's curves at the method's own level
    level_p: float
    rollouts: float
    train_seconds: float
    candidates: int
    guidance: list[float]  # of the replicates, selected like the SFT steps; empty without label tokens
    sft_steps: list[int | Literal["auto"]]  # of the replicates; supervised methods select theirs on validation prompts
    metrics: Metrics  # the task's own measures with the best decoding
    processors: list[str]  # types that the trials ran on

    @property
    def title(self) -> str:
        built_in = METHODS.get(cast(BuiltInMethod, self.name))
        return self.name if built_in is None else built_in.title


def table(trials: Sequence[Trial], methods: Sequence[MethodName], baseline: MethodName) -> list[Row]:
    """Return a row per method with trials, in the given order. Differences are paired over replicates."""
    by_method: dict[MethodName, dict[int, Trial]] = {name: {} for name in methods}
    for trial in trials:
        by_method[trial.method][trial.replicate] = trial
    rows = [_row(name, by_method[name], by_method[baseline]) for name in methods if by_method[name]]
    tested = [row for row in rows if row.name != baseline]
    best = dict(zip((row.name for row in tested), holm([row.best_difference.p for row in tested]), strict=True))
    level = dict(zip((row.name for row in tested), holm([row.level_p for row in tested]), strict=True))
    nan = float("nan")
    return [replace(row, p=best.get(row.name, nan), level_p=level.get(row.name, nan)) for row in rows]


def at(trial: Trial, part: EvaluationPart, decoding: Decoding) -> Measured:
    """Return the trial's measurement with one decoding."""
    return next(each for each in trial.parts[part] if each.decoding == decoding)


def best_decoding(trials: Mapping[int, Trial]) -> Decoding:
    """Return the decoding with the highest mean quality on validation prompts.

    Ties prefer no truncation, then the higher temperature.
    """
    found = [each.decoding for each in next(iter(trials.values())).parts["validation"]]
    means = {each: np.mean([at(trial, "validation", each).quality for trial in trials.values()]) for each in found}
    return max(sorted(found, key=lambda each: (each.truncated, -each.temperature)), key=lambda each: means[each])


def _row(name: MethodName, trials: Mapping[int, Trial], baseline: Mapping[int, Trial]) -> Row:
    shared = sorted(set(trials) & set(baseline))
    best = best_decoding(trials)
    found = {replicate: at(trial, "test", best) for replicate, trial in trials.items()}
    others: dict[int, Measured] = {}
    if baseline:
        own_best = best_decoding(baseline)
        others = {replicate: at(baseline[replicate], "test", own_best) for replicate in shared}
    differences = [found[replicate].quality - others[replicate].quality for replicate in shared]
    gaps = [
        np.array(found[replicate].each) - np.array(others[replicate].each)
        for replicate in shared
        if found[replicate].each is not None and others[replicate].each is not None
    ]
    level, at_equal = _at_equal_level(trials, baseline, shared)
    if trials is baseline:  # no comparison with itself
        gaps, at_equal = [], []
    ones = [each for trial in trials.values() for each in trial.parts["test"] if each.decoding == Decoding()]
    entropies = [each.entropy for each in ones if each.entropy is not None]
    return Row(
        name,
        count=len(trials),
        best=best,
        quality=float(np.mean([each.quality for each in found.values()])),
        at_one=float(np.mean([each.quality for each in ones])) if ones else None,
        entropy_at_one=float(np.mean(entropies)) if entropies else None,
        distinct_2=float(np.mean([each.distinct_2 for each in found.values()])),
        best_difference=Difference.of(differences or [float("nan")]),
        interval=bootstrap(gaps) if len(gaps) > 1 else None,
        p=float("nan"),
        level=level,
        level_difference=Difference.of(at_equal) if at_equal else None,
        level_p=Difference.of(at_equal).p if at_equal else float("nan"),
        rollouts=float(np.mean([trial.rollouts for trial in trials.values()])),
        train_seconds=float(np.mean([trial.seconds["training"] for trial in trials.values()])),
        candidates=next(iter(trials.values())).candidates,
        guidance=[trial.guidance for trial in trials.values() if trial.guidance is not None],
        sft_steps=[trial.sft_steps for trial in trials.values()],
        metrics=_means([each.metrics for each in found.values()]),
        processors=sorted({trial.processor for trial in trials.values()}),
    )


def _means(found: Sequence[Metrics]) -> Metrics:
    """Average the metrics that all measurements have."""
    shared = [key for key in found[0] if all(key in each for each in found)]
    return {key: float(np.mean([each[key] for each in found])) for key in shared}


def _at_equal_level(
    trials: Mapping[int, Trial], baseline: Mapping[int, Trial], shared: Sequence[int]
) -> tuple[str, list[float]]:
    """Compare quality at equal diversity; return the diversity measure and one difference per replicate.

    The difference is the method minus the baseline at the highest entropy that both reach, each by the highest of its
    curves there. It is distinct-2 instead of entropy if one of them selects among candidates and thus has no entropy.
    Returns no differences if the curves of a replicate do not overlap: which replicates remain would depend on the
    result.
    """
    if not shared:
        return "entropy", []

    def quality_at(trial: Trial, level: str, value: float) -> float | None:
        """Return the quality of the highest curve at this level; None outside all curves."""
        points = [[(getattr(each, level), each.quality) for each in curve] for curve in curves(trial.parts["test"])]
        return max((found for curve in points if (found := at_level(curve, value)) is not None), default=None)

    def highest(trial: Trial, level: str) -> float:
        return max(getattr(each, level) for each in trial.parts["test"])

    pairs = [(trials[replicate], baseline[replicate]) for replicate in shared]
    selects = any(each.entropy is None for pair in pairs for trial in pair for each in trial.parts["test"])
    level = "distinct_2" if selects else "entropy"
    found = []
    for pair in pairs:
        value = min(highest(trial, level) for trial in pair)
        own, reference = (quality_at(trial, level, value) for trial in pair)
        if own is None or reference is None:
            return level, []
        found.append(own - reference)
    return level, found
