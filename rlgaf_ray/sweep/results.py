"""The result of each trial, their ranking, and the best setting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from rlgaf_ray.config import Config

SEED = "run.seed"
Ending = Literal["finished", "stopped by the scheduler", "stopped by the guard", "failed", "not finished"]
ORDER: tuple[Ending, ...] = (
    "finished",
    "not finished",
    "stopped by the scheduler",
    "stopped by the guard",
    "failed",
)


@dataclass(frozen=True, slots=True)
class TrialResult:
    """How a trial ended, and the metrics of its last report."""

    trial_id: str
    values: Mapping[str, Any]  # the searched keys' values
    ending: Ending
    iteration: int
    value: float | None  # the optimised metric in the last report
    metrics: Mapping[str, float]  # all metrics of the last report
    note: str = ""  # why it was stopped, or its error

    @property
    def setting(self) -> tuple[tuple[str, str], ...]:
        """The values without the seed: trials that differ in the seed only repeat one setting."""
        return tuple((key, str(value)) for key, value in self.values.items() if key != SEED)


def read_result(
    config: Config,
    *,
    trial_id: str,
    values: Mapping[str, Any],
    last_report: Mapping[str, Any],
    error: str | None,
) -> TrialResult:
    """Build the result from a trial's last report to Tune and its error, if it failed."""
    iteration = int(last_report.get("iteration", 0))
    ending: Ending
    error = error or last_report.get("mistake")
    note = error or str(last_report.get("stopped", ""))
    if error is not None:
        ending = "failed"
    elif last_report.get("stopped"):
        ending = "stopped by the guard"
    elif iteration >= config.run.iterations:
        ending = "finished"
    elif last_report.get("done"):
        ending = "stopped by the scheduler"
    else:
        ending = "not finished"
    value = last_report.get(config.sweep.metric)
    numbers = {name: number for name, number in last_report.items() if isinstance(number, float) and "/" in name}
    return TrialResult(trial_id, values, ending, iteration, None if value is None else float(value), numbers, note)


def ranked(results: Sequence[TrialResult], mode: str) -> list[TrialResult]:
    """Sort the trials, best first. Finished trials come first: values of different iterations do not compare."""

    def key(result: TrialResult) -> tuple[int, int, float]:
        further = 0 if result.ending == "finished" else -result.iteration
        lost = result.value is None or math.isnan(result.value)
        return ORDER.index(result.ending), further, math.inf if lost else -_sign(mode) * (result.value or 0.0)

    return sorted(results, key=key)


def best_of(results: Sequence[TrialResult], mode: str) -> TrialResult | None:
    """Return the best finished trial of the best setting; None if no trial finished.

    The best setting has the largest share of finished trials (its seeds), and among equals the best mean. A trial that
    the guard stopped counts in the mean with its reported value; a finished one without a finite value is not finished.
    """
    settings: dict[tuple[tuple[str, str], ...], list[TrialResult]] = {}
    for result in ranked(results, mode):
        settings.setdefault(result.setting, []).append(result)

    def rank(group: Sequence[TrialResult]) -> tuple[float, float, float]:
        finished = [result.value for result in group if _has_finished(result) and result.value is not None]
        stopped = [
            result.value for result in group if result.ending == "stopped by the guard" and result.value is not None
        ]
        return (
            len(finished) / len(group),
            _sign(mode) * fmean([*finished, *stopped]),
            _sign(mode) * fmean(finished),  # if the guard's value is infinite
        )

    groups = [group for group in settings.values() if any(map(_has_finished, group))]
    best = max(groups, key=rank, default=[])
    return next(filter(_has_finished, best), None)


def _has_finished(result: TrialResult) -> bool:
    return result.ending == "finished" and result.value is not None and math.isfinite(result.value)


def _sign(mode: str) -> float:
    return 1.0 if mode == "max" else -1.0
