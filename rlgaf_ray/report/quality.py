"""Compare finished runs with models swept over temperature: tables, figure and the JSON file with their data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from rlgaf_ray.metrics import Metric, columns, metric
from rlgaf_ray.report.console import columns_table
from rlgaf_ray.report.figures import QualityCurve, QualityPoint, quality_diversity
from rlgaf_ray.types import EvaluationPart, Metrics

FILES: dict[EvaluationPart, str] = {
    "validation": "quality_diversity.json",
    "test": "quality_diversity_test.json",
}
QUALITIES = ("eval/judge_share", "eval/success", "eval/f1")
"""Plotted against diversity; else the first of the task's own metrics."""
COLUMNS = (
    "eval/closeness",
    "eval/judge_share",
    "eval/vader_share",
    "eval/embedding_share",
    "eval/success",
    "eval/f1",
    "eval/length_distance",
    "eval/two_sample_auc",
    "eval/embedding_two_sample_auc",
    "eval/real_nll",
    "eval/perplexity_ratio",
    "eval/distinct_2",
    "eval/self_bleu",
    "eval/copied",
)


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One model at one temperature."""

    model: str
    temperature: float
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class Comparison:
    """Models at several temperatures; ``adversarial`` names the runs that are compared with the other models."""

    rows: list[Evaluated]
    adversarial: list[str]
    real: QualityPoint | None = None
    part: EvaluationPart = "validation"

    @property
    def quality(self) -> str:
        """The metric of sample quality."""
        return quality_of(self.rows[0].metrics)

    def save(self, folder: Path) -> None:
        (folder / FILES[self.part]).write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, part: EvaluationPart = "validation") -> Comparison:
        tree = json.loads((folder / FILES[part]).read_text(encoding="utf-8"))
        real = None if tree["real"] is None else QualityPoint(**tree["real"])
        return cls([Evaluated(**row) for row in tree["rows"]], tree["adversarial"], real, tree["part"])

    def figure(self) -> Figure:
        curves = [
            QualityCurve(
                name,
                tuple(
                    _point(row.metrics, self.quality, label=f"{row.temperature:g}")
                    for row in sorted(self.rows, key=lambda row: row.temperature)
                    if row.model == name
                ),
                adversarial=name in self.adversarial,
            )
            for name in dict.fromkeys(row.model for row in self.rows)
        ]
        shown = metric(self.quality)
        return quality_diversity(curves, real=self.real, quality_name=f"{shown.line}{direction(shown)}")

    def advantages(self) -> list[str]:
        """Return one sentence per run and other model."""
        others = [name for name in dict.fromkeys(row.model for row in self.rows) if name not in self.adversarial]
        return [
            advantage(row, [other for other in self.rows if other.model == name], self.quality)
            for name in others
            for row in self.rows
            if row.model in self.adversarial
        ]


def quality_of(metrics: Metrics) -> str:
    """Return the metric of sample quality, which is plotted against diversity."""
    return next(each.name for each in columns((*QUALITIES, "eval/two_sample_auc"), metrics))


def direction(shown: Metric) -> str:
    """Return a remark on a metric that a better model has less of, else nothing."""
    return ", lower is better" if shown.sign < 0 else ""


def models_table(rows: Sequence[Evaluated], part: EvaluationPart = "validation") -> Table:
    """Build a table of all models at the first row's temperature and of real text, with 95 % intervals."""
    temperature = rows[0].temperature
    models = {row.model: row.metrics for row in rows if row.temperature == temperature}
    return columns_table(f"{part} prompts, one sample each, temperature {temperature:g}", models)


def temperatures_table(rows: Sequence[Evaluated], part: EvaluationPart = "validation") -> Table:
    """Build a table with a row per model and temperature, the lowest temperature first."""
    shown = Table(title=f"{part} prompts over temperatures")
    shown.add_column("model")
    metrics = columns(COLUMNS, rows[0].metrics)
    for head in ("temperature", *(each.head for each in metrics)):
        shown.add_column(head, justify="right")
    models = list(dict.fromkeys(row.model for row in rows))
    for row in sorted(rows, key=lambda row: (models.index(row.model), row.temperature)):
        cells = [each.shown(row.metrics[each.name]) for each in metrics]
        shown.add_row(row.model, f"{row.temperature:g}", *cells)
    return shown


def advantage(row: Evaluated, curve: Sequence[Evaluated], quality: str) -> str:
    """Compare a model's quality with a temperature curve at the same distinct-2, by linear interpolation."""
    name = f"{row.model} at temperature {row.temperature:g} against {curve[0].model}"
    points = sorted((other.metrics["eval/distinct_2"], other.metrics[quality]) for other in curve)
    diversity = row.metrics["eval/distinct_2"]
    level = at_level(points, diversity)
    if level is None:
        return f"{name}: distinct-2 {diversity:.3f} is outside the curve ({points[0][0]:.3f} to {points[-1][0]:.3f})"
    return (
        f"{name}, at equal distinct-2 {diversity:.3f}: {row.metrics[quality]:.3f} against {level:.3f} "
        f"({row.metrics[quality] - level:+.3f}{direction(metric(quality))})"
    )


def at_level(points: Sequence[tuple[float, float]], level: float) -> float | None:
    """Interpolate a curve of (x, y) points linearly at x = ``level``; None outside the curve."""
    across, up = zip(*sorted(points), strict=True)
    return float(np.interp(level, across, up)) if across[0] <= level <= across[-1] else None


def _point(metrics: Metrics, quality: str, *, label: str) -> QualityPoint:
    return QualityPoint(
        judged_share=metrics[quality],
        perplexity=metrics["eval/perplexity"],
        distinct_2=metrics["eval/distinct_2"],
        self_bleu=metrics["eval/self_bleu"],
        label=label,
        judged_share_stderr=metrics.get(f"{quality}_stderr", 0.0),
    )
