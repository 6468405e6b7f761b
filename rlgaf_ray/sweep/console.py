"""Console output of a sweep: a line when a trial starts, is evaluated or fails, and the final table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from rich.table import Table

from rlgaf_ray.config import Config
from rlgaf_ray.metrics import METRICS, SCORE, Metric, columns, metric
from rlgaf_ray.report.console import Terminal
from rlgaf_ray.sweep.results import TrialResult
from rlgaf_ray.sweep.space import short_names

COLUMNS = (SCORE, "eval/closeness", "eval/success", "eval/f1", "eval/perplexity_ratio", "eval/distinct_2_ratio")


class Lines(tune.Callback):
    """Prints the trials' progress in the driver's terminal. Tune pickles it, so it holds plain values only."""

    def __init__(self, config: Config) -> None:
        self.metric = config.sweep.metric

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        _print(trial, f"{describe(trial.config)}: started")

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        if result.get("stopped"):
            _print(trial, f"stopped by the guard: {result['stopped']}")
        elif "mistake" not in result:
            _print(trial, f"iteration {result['iteration']}: {', '.join(cells(result, self.metric))}")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        _print(trial, "failed")


def _print(trial: Trial, text: str) -> None:
    Terminal().on_message(f"trial {trial.trial_id}, {text}")


def describe(values: Mapping[str, Any]) -> str:
    """Format a trial's values as ``key=value, ...`` with short key names."""
    names = short_names(list(values))
    return ", ".join(f"{names[key]}={shown_value(value)}" for key, value in values.items())


def shown_value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def cells(metrics: Mapping[str, Any], optimised: str) -> list[str]:
    """Format the logged ones of the sweep's metrics, each with its name."""
    shown = columns_with(optimised, metrics)
    return [f"{head(each)} {each.shown(metrics[each.name])}" for each in shown if each.name in metrics]


def columns_with(optimised: str, logged: Iterable[str]) -> list[Metric]:
    """Return the columns of a sweep's table; the optimised metric comes first if it is not among the usual ones."""
    shown = columns(COLUMNS, logged)
    return shown if optimised in {each.name for each in shown} else [metric(optimised), *shown]


def head(shown: Metric) -> str:
    """Return a column's heading: the short name of a usual column, else the metric's full name."""
    return shown.head if shown.name in COLUMNS or shown.name not in METRICS else shown.name


def result_table(results: Sequence[TrialResult], config: Config, best: TrialResult | None) -> Table:
    """Build the table of all trials, ``results`` in the given order (best first)."""
    table = Table(title=f"{len(results)} trials, best first by {config.sweep.metric}")
    names = short_names(list(config.sweep.space))
    shown = columns_of(results, config.sweep.metric)
    for name in names.values():
        table.add_column(name, justify="right")
    for each in shown:
        table.add_column(head(each), justify="right")
    table.add_column("iteration", justify="right")
    table.add_column("ended")
    table.add_column("trial")
    for result in results:
        row = row_of(result, config, shown)
        style = "bold green" if best is not None and result.trial_id == best.trial_id else None
        table.add_row(*row, result.trial_id, style=style or ("dim" if result.ending != "finished" else None))
    return table


def columns_of(results: Sequence[TrialResult], optimised: str) -> list[Metric]:
    return columns_with(optimised, (name for result in results for name in result.metrics))


def row_of(result: TrialResult, config: Config, shown: Sequence[Metric]) -> list[str]:
    """Format a trial's values, metrics, iteration and ending for the table and the page."""
    return [
        *(shown_value(result.values.get(key)) for key in config.sweep.space),
        *(each.shown(result.metrics[each.name]) if each.name in result.metrics else "" for each in shown),
        str(result.iteration),
        result.ending,
    ]
