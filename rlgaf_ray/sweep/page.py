"""``sweep.html``: the ranked trials, the score against each searched key and the curves; figures also as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlgaf_ray.config import Config, dump_config
from rlgaf_ray.metrics import SCORE, columns
from rlgaf_ray.report.figures import file_name, save, svg
from rlgaf_ray.report.page import render
from rlgaf_ray.report.runs import METRICS, Run, load_run
from rlgaf_ray.sweep.console import COLUMNS, columns_of, describe, head, row_of
from rlgaf_ray.sweep.figures import curve_figure, knob_figure
from rlgaf_ray.sweep.results import TrialResult
from rlgaf_ray.sweep.space import short_names

PAGE = "sweep.html"


def write_page(config: Config, results: Sequence[TrialResult], best: TrialResult | None, command: str | None) -> Path:
    """Write ``sweep.html`` and ``figures/`` into the sweep's folder. ``results`` is sorted best first."""
    folder = config.run.folder
    keys = list(config.sweep.space)
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    knobs, curves = [], []
    for key, domain in config.sweep.space.items():
        other = keys[1 - keys.index(key)] if len(keys) == 2 else None
        figure = knob_figure(results, key, domain, by=other, metric=config.sweep.metric)
        knobs.append((f"{config.sweep.metric} against {key}", svg(figure)))
        for suffix in (".png", ".svg"):
            save(figure, figures / f"knob_{key}{suffix}")
    runs = trial_runs(folder, results)
    second = keys[1] if len(keys) == 2 else None
    top = None if best is None else best.trial_id
    quality = config.quality
    for each in columns(COLUMNS, [SCORE, *(name for _, run in runs for row in run.rows for name in row)]):
        drawn = curve_figure(each.line, each.name, runs, key=keys[0], by=second, best=top, quality=quality)
        if drawn is not None:
            curves.append((each.line, svg(drawn)))
            for suffix in (".png", ".svg"):
                save(drawn, figures / f"curve_{file_name(each.name)}{suffix}")
    shown = columns_of(results, config.sweep.metric)
    names = short_names(keys)
    path = folder / PAGE
    render(
        "sweep.html.j2",
        path,
        title=f"Sweep {folder.name}",
        metric=config.sweep.metric,
        heads=[*names.values(), *map(head, shown), "iteration", "ended"],
        rows=[
            {"trial": result.trial_id, "cells": row_of(result, config, shown), "best": result is best}
            for result in results
        ],
        knobs=knobs,
        curves=curves,
        notes=[(result.trial_id, result.note) for result in results if result.note],
        second=second,
        best=best and describe(best.values),
        command=command,
        config=dump_config(config),
    )
    return path


def trial_runs(folder: Path, results: Sequence[TrialResult]) -> list[tuple[TrialResult, Run]]:
    """Load the run folders of the trials that have logged metrics."""
    runs = []
    for result in results:
        metrics = folder / "trials" / result.trial_id / METRICS
        if metrics.is_file() and metrics.stat().st_size:
            runs.append((result, load_run(metrics.parent)))
    return runs
