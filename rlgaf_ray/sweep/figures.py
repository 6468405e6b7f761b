"""Figures of a sweep: the score against each searched key, and the learning curves with early stops marked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlgaf_ray.config.sweep import Domain
from rlgaf_ray.evaluation.score import sweep_score
from rlgaf_ray.metrics import SCORE
from rlgaf_ray.report.figures import COLOURS, LEGEND_LINE, STYLE, shown
from rlgaf_ray.report.runs import Run
from rlgaf_ray.sweep.console import shown_value
from rlgaf_ray.sweep.results import TrialResult

SIZE = (4.2, 2.9)
MARKERS = {"finished": "o", "not finished": ".", "stopped by the scheduler": "x", "stopped by the guard": "s"}
DASHES = ("-", "--", ":", "-.")
LOGARITHMIC_FROM = 8.0  # ratio of the largest to the smallest value from which the axis is logarithmic
LEGEND_COLUMNS = 4
FEW = 8  # up to this many values, each gets its own colour and legend entry


def knob_figure(results: Sequence[TrialResult], key: str, domain: Domain, *, by: str | None, metric: str) -> Figure:
    """Plot every trial's ``metric`` over its value of ``key``, one colour per value of the key ``by``."""
    reported = [result for result in results if result.value is not None and math.isfinite(result.value)]
    groups = _distinct(reported, by) if by else [None]
    if len(groups) > FEW:
        by, groups = None, [None]
    with rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot()
        position = _axis(axes, domain, reported, key)
        for group, colour in zip(groups, COLOURS, strict=False):
            members = [result for result in reported if by is None or result.values[by] == group]
            for ending, marker in MARKERS.items():
                points = sorted((position(item), value_of(item)) for item in members if item.ending == ending)
                x, y = [point[0] for point in points], [point[1] for point in points]
                if by and ending == "finished":
                    axes.plot(x, y, color=colour, alpha=0.5)
                axes.plot(x, y, marker, color=colour, markersize=5, zorder=3)
            if by:
                axes.plot([], [], color=colour, marker="o", label=shown(shown_value(group)))
        axes.set_title(key, loc="left", fontsize=9.5)
        axes.set_ylabel(metric)
        if by and groups:
            _legend(figure, by)
        return figure


def value_of(result: TrialResult) -> float:
    """Return the optimised metric of a trial that has reported it."""
    assert result.value is not None, f"{result.trial_id} has reported nothing"
    return result.value


def _axis(axes: Axes, domain: Domain, results: Sequence[TrialResult], key: str) -> Callable[[TrialResult], float]:
    """Set up the x axis for the key; returns a function from a trial to its x position."""
    values = list(domain.bounds or domain.values)
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if not numbers:
        names = list(dict.fromkeys(str(value) for value in values))
        axes.set_xticks(range(len(names)), names)
        return lambda result: float(names.index(str(result.values[key])))
    if min(values) > 0 and max(values) >= LOGARITHMIC_FROM * min(values):
        axes.set_xscale("log")
    if domain.values:
        axes.set_xticks(sorted(set(values)), [shown_value(value) for value in sorted(set(values))], minor=False)
        axes.minorticks_off()
    return lambda result: float(result.values[key])


def curve_figure(
    title: str,
    metric: str,
    runs: Sequence[tuple[TrialResult, Run]],
    *,
    key: str,
    best: str | None,
    quality: str,
    by: str | None = None,
) -> Figure | None:
    """Plot one metric over the iterations of every trial; returns None if no trial logged it.

    The colour shows the value of ``key``, the line style that of ``by``; the line of the trial ``best`` is thick.
    ``quality`` is the task's metric in ``sweep_score``.
    """
    groups = _distinct([result for result, _ in runs], key)
    colours = _colours(groups)
    dashes = [str(value) for value in _distinct([result for result, _ in runs], by)] if by else [""]
    with rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot()
        drawn = False
        for result, run in runs:
            x, y = scores(run, quality) if metric == SCORE else run.series(metric)
            if not y:
                continue
            drawn = True
            colour = colours[str(result.values[key])]
            dash = DASHES[dashes.index(str(result.values[by])) % len(DASHES)] if by else "-"
            axes.plot(x, y, dash, color=colour, linewidth=2.2 if result.trial_id == best else 1.0, alpha=0.9)
            if result.ending != "finished" and result.ending in MARKERS:
                axes.plot(x[-1], y[-1], MARKERS[result.ending], color=colour, markersize=7, zorder=3)
        if not drawn:
            return None
        axes.set_title(title, loc="left")
        axes.set_xlabel("iteration")
        named = groups if len(groups) <= FEW else [groups[0], groups[-1]]
        for group in named:
            axes.plot([], [], color=colours[str(group)], label=shown(shown_value(group)))
        _legend(figure, key)
        return figure


def _legend(figure: Figure, key: str) -> None:
    """Add a legend below the axes, titled with the key, and extend the figure's height for it."""
    legend = figure.legend(
        loc="outside lower left", fontsize=8.5, ncols=LEGEND_COLUMNS, title=key, title_fontsize=8.5, alignment="left"
    )
    lines = 1 + math.ceil(len(legend.texts) / LEGEND_COLUMNS)
    figure.set_figheight(figure.get_figheight() + LEGEND_LINE * lines)


def scores(run: Run, quality: str) -> tuple[list[float], list[float]]:
    """Return the iterations of the evaluations and the sweep's score after each."""
    rows = [
        (int(row["iteration"] or 0), {name: math.nan if value is None else value for name, value in row.items()})
        for row in run.rows
        if "eval/perplexity_ratio" in row and row["iteration"]
    ]
    return [float(row[0]) for row in rows], [sweep_score(rows[: end + 1], quality) for end in range(len(rows))]


def _distinct(results: Sequence[TrialResult], key: str) -> list[Any]:
    """Return the distinct values of the key in the trials; numbers are sorted."""
    values = {str(result.values[key]): result.values[key] for result in results}.values()
    numbers = all(isinstance(value, int | float) for value in values)
    return sorted(values) if numbers else list(values)


def _colours(groups: Sequence[Any]) -> dict[str, Any]:
    if len(groups) <= FEW:
        return {str(group): colour for group, colour in zip(groups, COLOURS, strict=False)}
    return {str(group): colormaps["viridis"](row / (len(groups) - 1)) for row, group in enumerate(groups)}
