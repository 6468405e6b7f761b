"""``rlgaf report``: a self-contained HTML page over one or several runs, and a rating sheet for human judges."""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from rlgaf_ray.errors import UserError
from rlgaf_ray.loop.non_finite import skipped_steps
from rlgaf_ray.metrics import columns
from rlgaf_ray.report.console import RESULT_LINES, caption, cell, real_cell
from rlgaf_ray.report.figures import SMOOTHING, curves, draw, save, svg
from rlgaf_ray.report.quality import FILES, Comparison
from rlgaf_ray.report.runs import Run


def write_report(runs: Sequence[Run], folder: Path) -> Path:
    """Write ``report.html`` into ``folder``, and each figure as PNG and SVG into its ``figures/``.

    The page loads no other file. Model output is escaped, and a content security policy forbids scripts.
    """
    figures: list[tuple[str, str]] = []
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    for curve in curves(runs):
        figure: Figure | None = draw(curve, runs)
        if figure is not None:
            figures.append((curve.title, svg(figure)))
            for suffix in (".png", ".svg"):
                save(figure, folder / "figures" / f"{curve.name}{suffix}")
    for run in runs:
        for part, file in FILES.items():
            if (run.folder / file).is_file():  # written by rlgaf evaluate
                picture = svg(Comparison.load(run.folder, part).figure())
                figures.append((f"Quality against diversity, {part} prompts", picture))
    path = folder / "report.html"
    render(
        "page.html.j2",
        path,
        title=" and ".join(run.name for run in runs) if len(runs) < 4 else f"{len(runs)} runs",
        runs=runs,
        table=result_rows(runs),
        figures=figures,
        captions=[text for run in runs if (text := caption(run.evaluations[1] or run.evaluations[0]))],
        smoothing=SMOOTHING,
        verdicts=[(run.name, guard_verdict(run)) for run in runs],
    )
    return path


def render(template: str, path: Path, **content: Any) -> None:
    """Render a template of this folder to ``path``; all values are escaped."""
    environment = Environment(
        loader=PackageLoader("rlgaf_ray.report", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    path.write_text(environment.get_template(template).render(**content), encoding="utf-8")


def result_rows(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Build the rows of the results table: for each run the SFT model, the newest evaluation and real text."""
    rows = []
    logged = (name for run in runs for evaluation in run.evaluations for name in evaluation)
    for metric in columns(RESULT_LINES, logged, most=None):
        cells = []
        for run in runs:
            first, last = run.evaluations
            before, now = cell(first, metric), cell(last, metric)
            cells += [before, now, real_cell(last or first, metric) if before or now else ""]
        rows.append((metric.line, cells))
    return [row for row in rows if any(row[1])]


def guard_verdict(run: Run) -> str:
    """Summarize the guard's verdicts and actions, the skipped steps, and the first iteration of non-finite metrics."""
    found = [
        f"iteration {event['iteration']}: {event['verdict']} ({event['action']}): {event['evidence']}"
        for event in run.verdicts
        if event["verdict"] != "healthy"
    ]
    skipped = sum(skipped_steps({name: value or 0.0 for name, value in row.items()}) for row in run.rows)
    if skipped:
        found.append(f"{skipped:g} optimiser steps were skipped")
    first: dict[str, int] = {}
    for row in run.rows:
        for name, value in row.items():
            if value is None:
                first.setdefault(name, int(row["iteration"] or 0))
    if not first and not found:
        return f"healthy over {int(run.rows[-1]['iteration'] or 0)} iterations"
    if not first:
        return "; ".join(found)
    named = [f"{name} at iteration {iteration}" for name, iteration in list(first.items())[:5]]
    more = f" and {len(first) - 5} more" if len(first) > 5 else ""
    return "; ".join([*found, f"non-finite: {', '.join(named)}{more}"])


def write_rating_sheet(runs: Sequence[Run], folder: Path, *, seed: int = 0) -> tuple[Path, Path]:
    """Write shuffled samples from before and after training for a blind human rating (RLGAF, section 4.5).

    ``rating_sheet.csv`` has an empty column for the ratings; ``rating_key.csv`` maps each number to its run and side.
    A text that a spreadsheet would read as a formula gets a leading apostrophe. Raises ``UserError`` if no run has
    samples.
    """
    entries = [
        (run.name, side, text)
        for run in runs
        for pair in run.samples
        for side, text in zip(("before", "after"), pair, strict=True)
    ]
    if not entries:
        raise UserError(f"no samples in {', '.join(str(run.folder) for run in runs)}: the runs have not finished yet")
    random.Random(seed).shuffle(entries)
    sheet, key = folder / "rating_sheet.csv", folder / "rating_key.csv"
    with sheet.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["number", "text", "rating"])
        for number, (_, _, text) in enumerate(entries, start=1):
            writer.writerow([number, f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text, ""])
    with key.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["number", "run", "side"])
        for number, (name, side, _) in enumerate(entries, start=1):
            writer.writerow([number, name, side])
    return sheet, key
