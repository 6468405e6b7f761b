"""Tables of a comparison for the terminal, ``compare.html``, ``compare.md`` and ``compare.json``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from rlgaf_ray.compare.budget import budget
from rlgaf_ray.compare.configs import method_config, method_of
from rlgaf_ray.compare.decoding import decodings
from rlgaf_ray.compare.figures import TITLES, figures
from rlgaf_ray.compare.results import Row
from rlgaf_ray.compare.trial import Trial
from rlgaf_ray.config import Config, dump_config
from rlgaf_ray.config.compare import MethodName
from rlgaf_ray.metrics import VARIANT, metric
from rlgaf_ray.report.figures import save, svg
from rlgaf_ray.report.page import render

PAGE = "compare.html"


@dataclass(frozen=True)
class Grid:
    """A table for terminal, Markdown and HTML. The first column is text, the others are numbers."""

    title: str
    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def shown(self) -> Table:
        table = Table(title=f"{self.title}: {self.caption}")
        for place, head in enumerate(self.heads):
            table.add_column(head, justify="right" if place else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        return table

    @property
    def markdown(self) -> str:
        lines = [f"## {self.title}", "", f"{self.caption}", ""]
        lines += [f"| {' | '.join(self.heads)} |", "|" + "---|" * len(self.heads)]
        lines += [f"| {' | '.join(row)} |" for row in self.rows]
        return "\n".join(lines) + "\n"


def grids(config: Config, rows: Sequence[Row]) -> list[Grid]:
    return [results(rows), at_equal_level(rows), measures(rows), spent(config, rows)]


def results(rows: Sequence[Row]) -> Grid:
    return Grid(
        "Results",
        "on test prompts; best decoding selected on validation prompts; p with Holm's correction over the methods",
        ("method", "quality at T 1", "best", "quality", "vs baseline", "bootstrap", "p"),
        [
            (
                row.title,
                number(row.at_one),
                str(row.best),
                number(row.quality),
                "" if math.isnan(row.p) and row.best_difference.mean == 0 else str(row.best_difference),
                "" if row.interval is None else f"[{row.interval[0]:+.3f}, {row.interval[1]:+.3f}]",
                p_value(row.p),
            )
            for row in rows
        ],
    )


def at_equal_level(rows: Sequence[Row]) -> Grid:
    return Grid(
        "At equal diversity",
        "the method minus the baseline at the highest entropy or distinct-2 that both reach, if any",
        ("method", "entropy at T 1", "matched", "vs baseline", "p"),
        [
            (
                row.title,
                number(row.entropy_at_one, 2),
                "" if row.level_difference is None else row.level.replace("_", "-"),
                "" if row.level_difference is None else str(row.level_difference),
                p_value(row.level_p),
            )
            for row in rows
        ],
    )


def measures(rows: Sequence[Row]) -> Grid:
    """Return the task's own measures with the best decoding, without standard errors."""
    names = [name for name in dict.fromkeys(key for row in rows for key in row.metrics) if not VARIANT.search(name)]
    found = [metric(name) for name in names]
    return Grid(
        "Measures",
        "with the best decoding, mean over replicates",
        ("method", *(each.head for each in found), "distinct-2"),
        [
            (
                row.title,
                *(each.shown(row.metrics[each.name]) if each.name in row.metrics else "" for each in found),
                number(row.distinct_2),
            )
            for row in rows
        ],
    )


def spent(config: Config, rows: Sequence[Row]) -> Grid:
    replicate = config.compare.first_replicate
    counted = {row.name: budget(method_config(config, row.name, replicate), row.name) for row in rows}
    return Grid(
        "Budget",
        "per replicate; SFT steps and guidance are those kept, generator steps include all tried; passes for the "
        "longest answer; "
        f"processors: {', '.join(sorted({kind for row in rows for kind in row.processors}))}",
        (
            "method",
            "replicates",
            "SFT steps",
            "rollouts",
            "generator steps",
            "D updates",
            "training, s",
            "passes per answer",
        ),
        [
            (
                row.title,
                str(row.count),
                kept(row),
                f"{row.rollouts:,.0f}",
                f"{counted[row.name].generator_steps:,}",
                f"{counted[row.name].discriminator_updates:,}",
                f"{row.train_seconds:,.0f}",
                f"{counted[row.name].passes:,}",
            )
            for row in rows
        ],
    )


def kept(row: Row) -> str:
    """Show the SFT steps, and the weights of the guidance, that replicates kept."""
    steps = ", ".join(map(str, dict.fromkeys(row.sft_steps)))
    weights = ", ".join(f"{weight:g}" for weight in dict.fromkeys(row.guidance))
    return f"{steps}; guidance {weights}" if weights else steps


def number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def p_value(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2g}"


def _with_null(tree: Any) -> Any:
    """Replace NaN, which JSON lacks, by None."""
    match tree:
        case dict():
            return {key: _with_null(value) for key, value in tree.items()}
        case list() | tuple():
            return [_with_null(value) for value in tree]
        case float() if math.isnan(tree):
            return None
    return tree


def write_page(
    config: Config, trials: Sequence[Trial], rows: Sequence[Row], errors: Mapping[tuple[MethodName, int], str]
) -> Path:
    folder, tables = config.run.folder, grids(config, rows)
    plots, truncated = figures(config, trials), any(each.truncated for each in decodings(config.compare))
    (folder / "figures").mkdir(exist_ok=True)
    for name, figure in plots.items():
        for suffix in (".png", ".svg"):
            save(figure, folder / "figures" / f"{name}{suffix}")
    tree = _with_null([asdict(row) for row in rows])
    (folder / "compare.json").write_text(json.dumps(tree, indent=1), encoding="utf-8")
    (folder / "compare.md").write_text("\n".join(each.markdown for each in tables), encoding="utf-8")
    path = folder / PAGE
    render(
        "compare.html.j2",
        path,
        title=f"Comparison {folder.name}",
        quality=metric(config.best_metric).head,
        baseline=method_of(config, config.compare.baseline).title,
        tables=tables,
        markers="; circles: temperatures, triangles: top-p, squares: min-p" if truncated else "",
        figures=[(title, svg(plots[name])) for name, title in TITLES.items()],
        sources=[(each.title, each.source) for each in (method_of(config, row.name) for row in rows) if each.source],
        errors=[(f"{name} {replicate}", error) for (name, replicate), error in errors.items()],
        config=dump_config(config),
    )
    return path
