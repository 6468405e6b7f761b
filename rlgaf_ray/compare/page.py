"""A comparison's tables in the terminal, and ``compare.html``, ``compare.md`` and ``compare.json`` in its folder."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from rlgaf_ray.compare.methods import METHODS
from rlgaf_ray.compare.results import Row, at
from rlgaf_ray.compare.trial import Trial
from rlgaf_ray.config import Config, dump_config
from rlgaf_ray.config.compare import MethodName
from rlgaf_ray.report.figures import save, svg
from rlgaf_ray.report.page import render

PAGE = "compare.html"
HEADS = (
    "method",
    "T = 1",
    "entropy",
    "best T",
    "quality",
    "distinct-2",
    "against the baseline",
    "bootstrap",
    "p",
    "at equal level",
    "p",
)
BUDGET = ("method", "replicates", "rollouts for training", "seconds of training", "samples an answer")


def cells(row: Row) -> list[str]:
    interval = "" if row.interval is None else f"[{row.interval[0]:+.3f}, {row.interval[1]:+.3f}]"
    level = "" if row.level_difference is None else f"{row.level_difference} ({row.level.replace('_', '-')})"
    return [
        row.title,
        number(row.at_one),
        number(row.entropy_at_one, 2),
        f"{row.best_temperature:g}",
        number(row.quality),
        number(row.distinct_2),
        "" if math.isnan(row.p) and row.best_difference.mean == 0 else str(row.best_difference),
        interval,
        p_value(row.p),
        level,
        p_value(row.level_p),
    ]


def budget_cells(row: Row) -> list[str]:
    return [row.title, str(row.count), f"{row.rollouts:,.0f}", f"{row.train_seconds:,.0f}", str(row.candidates)]


def number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def p_value(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2g}"


def results_table(rows: Sequence[Row]) -> Table:
    shown = Table(title="test prompts; temperatures chosen on validation prompts; p by Holm over the methods")
    for head in HEADS:
        shown.add_column(head, justify="left" if head == "method" else "right")
    for row in rows:
        shown.add_row(*cells(row))
    return shown


def budget_table(rows: Sequence[Row]) -> Table:
    shown = Table(title="what each method spends, mean of a replicate")
    for head in BUDGET:
        shown.add_column(head, justify="left" if head == "method" else "right")
    for row in rows:
        shown.add_row(*budget_cells(row))
    return shown


def write_page(
    config: Config, trials: Sequence[Trial], rows: Sequence[Row], errors: Mapping[tuple[MethodName, int], str]
) -> Path:
    folder = config.run.folder
    figures = _figures(config, trials)
    (folder / "figures").mkdir(exist_ok=True)
    for name, figure in figures.items():
        for suffix in (".png", ".svg"):
            save(figure, folder / "figures" / f"{name}{suffix}")
    (folder / "compare.json").write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")
    (folder / "compare.md").write_text(
        markdown(HEADS, map(cells, rows)) + "\n" + markdown(BUDGET, map(budget_cells, rows)), encoding="utf-8"
    )
    path = folder / PAGE
    render(
        "compare.html.j2",
        path,
        title=f"Comparison {folder.name}",
        quality=config.best_metric,
        baseline=METHODS[config.compare.baseline].title,
        heads=HEADS,
        rows=list(map(cells, rows)),
        budget_heads=BUDGET,
        budget=list(map(budget_cells, rows)),
        figures=[(title, svg(figures[name])) for name, title in TITLES.items()],
        sources=[(METHODS[row.name].title, METHODS[row.name].source) for row in rows if METHODS[row.name].source],
        errors=[(f"{name} {replicate}", error) for (name, replicate), error in errors.items()],
        config=dump_config(config),
    )
    return path


TITLES = {"temperature": "Quality over temperatures", "distinct-2": "Quality against distinct-2"}
"""By abscissa, in the order of a point's values."""


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _curves(config: Config, trials: Sequence[Trial]) -> dict[str, list[tuple[float, float, float]]]:
    """Each method's (temperature, mean distinct-2, mean quality) on the test prompts, averaged over replicates."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for name in config.compare.methods:
        own = [trial for trial in trials if trial.method == name]
        if own:
            points = [(t, [at(trial, "test", t) for trial in own]) for t in sorted(config.compare.temperatures)]
            found[METHODS[name].title] = [
                (t, float(np.mean([m.distinct_2 for m in each])), float(np.mean([m.quality for m in each])))
                for t, each in points
            ]
    return found


def _figures(config: Config, trials: Sequence[Trial]) -> dict[str, Figure]:
    curves = _curves(config, trials)
    return {name: _figure(curves, across, name, config.best_metric) for across, name in enumerate(TITLES)}


def _figure(curves: dict[str, list[tuple[float, float, float]]], across: int, label: str, quality: str) -> Figure:
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for number, (title, points) in enumerate(curves.items()):
        style = "-" if number % 2 == 0 else "--"
        axes.plot([p[across] for p in points], [p[2] for p in points], style, marker="o", markersize=3, label=title)
    axes.set_xlabel(label)
    axes.set_ylabel(quality.removeprefix("eval/"))
    axes.legend(fontsize="x-small", frameon=False)
    return figure
