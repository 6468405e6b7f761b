"""What a person sees of a sweep: a line when a trial starts, is evaluated and ends, and the table at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from rich.table import Table

from rlgaf_ray.config import Config
from rlgaf_ray.report.console import Terminal
from rlgaf_ray.sweep.results import TrialResult
from rlgaf_ray.sweep.space import short_names

# Column head, metric, format.
COLUMNS = (
    ("score", "sweep/score", "{:.3f}"),
    ("closeness", "eval/closeness", "{:.3f}"),
    ("F1", "eval/f1", "{:.1f}"),
    ("perplexity ratio", "eval/perplexity_ratio", "{:.2f}"),
    ("distinct-2 ratio", "eval/distinct_2_ratio", "{:.2f}"),
)


class Lines(tune.Callback):
    """Follows the trials in the driver's terminal. Tune pickles it for a later resume: it holds plain values only."""

    def __init__(self, config: Config) -> None:
        self.metric = config.sweep.metric

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        _say(trial, f"{describe(trial.config)}: starts")

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        if result.get("stopped"):
            _say(trial, f"stopped by the guard: {result['stopped']}")
        elif "mistake" not in result:
            _say(trial, f"iteration {result['iteration']}: {', '.join(cells(result, self.metric))}")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        _say(trial, "failed")


def _say(trial: Trial, text: str) -> None:
    Terminal().on_message(f"trial {trial.trial_id}, {text}")


def describe(values: Mapping[str, Any]) -> str:
    names = short_names(list(values))
    return ", ".join(f"{names[key]}={shown_value(value)}" for key, value in values.items())


def shown_value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def cells(metrics: Mapping[str, Any], metric: str) -> list[str]:
    columns = list(COLUMNS) if metric in {name for _, name, _ in COLUMNS} else [*COLUMNS, (metric, metric, "{:.4g}")]
    return [f"{head} {form.format(metrics[name])}" for head, name, form in columns if name in metrics]


def result_table(results: Sequence[TrialResult], config: Config, best: TrialResult | None) -> Table:
    """Best first."""
    table = Table(title=f"{len(results)} trials, best first by {config.sweep.metric}")
    names = short_names(list(config.sweep.space))
    columns = columns_of(results, config.sweep.metric)
    for name in names.values():
        table.add_column(name, justify="right")
    for head, _, _ in columns:
        table.add_column(head, justify="right")
    table.add_column("iteration", justify="right")
    table.add_column("ended")
    table.add_column("trial")
    for result in results:
        row = row_of(result, config, columns)
        style = "bold green" if best is not None and result.trial_id == best.trial_id else None
        table.add_row(*row, result.trial_id, style=style or ("dim" if result.ending != "finished" else None))
    return table


def columns_of(results: Sequence[TrialResult], metric: str) -> list[tuple[str, str, str]]:
    logged = {name for result in results for name in result.metrics}
    columns = [column for column in COLUMNS if column[1] in logged]
    return columns if metric in {name for _, name, _ in columns} else [(metric, metric, "{:.4g}"), *columns]


def row_of(result: TrialResult, config: Config, columns: Sequence[tuple[str, str, str]]) -> list[str]:
    """Values, metrics, iteration and ending, as the table and the page show them."""
    return [
        *(shown_value(result.values.get(key)) for key in config.sweep.space),
        *(form.format(result.metrics[name]) if name in result.metrics else "" for _, name, form in columns),
        str(result.iteration),
        result.ending,
    ]
