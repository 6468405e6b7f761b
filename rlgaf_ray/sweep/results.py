"""The result of each trial, their ranking, and the best setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    sign = -1.0 if mode == "max" else 1.0

    def key(result: TrialResult) -> tuple[int, int, float]:
        further = 0 if result.ending == "finished" else -result.iteration
        return ORDER.index(result.ending), further, 0.0 if result.value is None else sign * result.value

    return sorted(results, key=key)


def best_of(results: Sequence[TrialResult], mode: str) -> TrialResult | None:
    """Return the best finished trial of the setting with the best mean over seeds; None if no trial finished."""
    finished = [result for result in ranked(results, mode) if result.ending == "finished" and result.value is not None]
    if not finished:
        return None
    settings: dict[tuple[tuple[str, str], ...], list[TrialResult]] = {}
    for result in finished:
        settings.setdefault(result.setting, []).append(result)
    sign = 1.0 if mode == "max" else -1.0
    return max(settings.values(), key=lambda group: sign * _mean(group))[0]


def _mean(group: Sequence[TrialResult]) -> float:
    values = [result.value for result in group if result.value is not None]
    return sum(values) / len(values)
