"""Figures of a comparison: quality of each method over temperature, and against diversity."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlgaf_ray.compare.configs import method_of
from rlgaf_ray.compare.decoding import curves
from rlgaf_ray.compare.measuring import Measured
from rlgaf_ray.compare.results import at
from rlgaf_ray.compare.trial import Trial
from rlgaf_ray.config import Config
from rlgaf_ray.metrics import metric
from rlgaf_ray.report.figures import COLOURS, STYLE

LABEL_WIDTH = 26  # characters per line of the legend, two columns wide
LINES = ("-", "--", ":", "-.")  # by multiples of the number of colours
TITLES = {"temperature": "Quality over temperatures", "distinct_2": "Quality against distinct-2"}
"""Figure title by the field of ``Measured`` on the x-axis."""


def figures(config: Config, trials: Sequence[Trial]) -> dict[str, Figure]:
    """Draw the figures by x-axis: means over replicates on the test prompts."""
    return {across: _figure(config, trials, across) for across in TITLES}


def _figure(config: Config, trials: Sequence[Trial], across: str) -> Figure:
    names = [name for name in config.compare.methods if any(trial.method == name for trial in trials)]
    with rc_context(STYLE):
        figure = Figure(figsize=(5.4, 4.6), layout="constrained")
        axes = figure.subplots()
        for number, name in enumerate(names):
            own = [trial for trial in trials if trial.method == name]
            colour, line = COLOURS[number % len(COLOURS)], LINES[number // len(COLOURS) % len(LINES)]
            for curve in curves(own[0].parts["test"]):
                if across != "temperature" or not curve[-1].decoding.truncated:
                    _draw(axes, own, curve, across, color=colour, line=line, label=method_of(config, name).title)
        axes.set_xlabel(across.replace("_", "-"))
        axes.set_ylabel(metric(config.best_metric).head)
        figure.legend(loc="outside lower center", ncols=2, handlelength=3.0)
        return figure


def _draw(
    axes: Axes, trials: Sequence[Trial], curve: Sequence[Measured], across: str, *, color: str, line: str, label: str
) -> None:
    """Plot one curve: circles for temperature, triangles for top-p, squares for min-p."""
    last = curve[-1].decoding
    found = [[at(trial, "test", each.decoding) for trial in trials] for each in curve]
    points = sorted(
        (float(np.mean([getattr(each, across) for each in row])), float(np.mean([each.quality for each in row])))
        for row in found
    )
    axes.plot(
        [x for x, _ in points],
        [y for _, y in points],
        line,
        color=color,
        marker="^" if last.top_p < 1 else "s" if last.min_p > 0 else "o",
        markersize=4,
        label=None if last.truncated else fill(label, LABEL_WIDTH),
    )
