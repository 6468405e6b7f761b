"""Finished runs beside temperature-swept models: the table, the picture, and the file that both are made from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from rlgaf_ray.report.console import columns_table
from rlgaf_ray.report.figures import QualityCurve, QualityPoint, quality_diversity
from rlgaf_ray.types import EvaluationPart, Metrics

FILES: dict[EvaluationPart, str] = {
    "validation": "quality_diversity.json",
    "test": "quality_diversity_test.json",
}
QUALITIES = {"eval/judge_share": "judged as wanted", "eval/f1": "F1, %"}
COLUMNS = [  # head, metric, format
    ("closeness", "eval/closeness", "{:.3f}"),
    ("linear judge", "eval/judge_share", "{:.3f}"),
    ("VADER", "eval/vader_share", "{:.3f}"),
    ("embedding judge", "eval/embedding_share", "{:.3f}"),
    ("F1, %", "eval/f1", "{:.1f}"),
    ("length distance", "eval/length_distance", "{:.3f}"),
    ("AUC words", "eval/two_sample_auc", "{:.3f}"),
    ("AUC embeddings", "eval/embedding_two_sample_auc", "{:.3f}"),
    ("NLL of real text", "eval/real_nll", "{:.3f}"),
    ("perplexity ratio", "eval/perplexity_ratio", "{:.2f}"),
    ("distinct-2", "eval/distinct_2", "{:.3f}"),
    ("self-BLEU", "eval/self_bleu", "{:.3f}"),
    ("copied", "eval/copied", "{:.2%}"),
]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One model at one temperature."""

    model: str
    temperature: float
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class Comparison:
    """Models over temperatures; those of ``adversarial`` are the runs that are held against the others."""

    rows: list[Evaluated]
    adversarial: list[str]
    real: QualityPoint | None = None
    part: EvaluationPart = "validation"

    @property
    def quality(self) -> str:
        """The metric that says how good the samples are."""
        return next(name for name in QUALITIES if name in self.rows[0].metrics)

    def save(self, folder: Path) -> None:
        (folder / FILES[self.part]).write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, folder: Path, part: EvaluationPart = "validation") -> Comparison:
        tree = json.loads((folder / FILES[part]).read_text())
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
        return quality_diversity(curves, real=self.real, quality_name=QUALITIES[self.quality])

    def advantages(self) -> list[str]:
        """One sentence for each run against each other model."""
        others = [name for name in dict.fromkeys(row.model for row in self.rows) if name not in self.adversarial]
        return [
            advantage(row, [other for other in self.rows if other.model == name], self.quality)
            for name in others
            for row in self.rows
            if row.model in self.adversarial
        ]


def models_table(rows: Sequence[Evaluated], part: EvaluationPart = "validation") -> Table:
    """A column for each model at the temperature of the first row, and one for real text, with 95 % intervals."""
    temperature = rows[0].temperature
    models = {row.model: row.metrics for row in rows if row.temperature == temperature}
    return columns_table(f"{part} prompts, one sample each, temperature {temperature:g}", models)


def temperatures_table(rows: Sequence[Evaluated], part: EvaluationPart = "validation") -> Table:
    """A line for each model and temperature, coldest first."""
    shown = Table(title=f"{part} prompts over temperatures")
    shown.add_column("model")
    columns = [column for column in COLUMNS if column[1] in rows[0].metrics]
    for head in ("temperature", *(head for head, _, _ in columns)):
        shown.add_column(head, justify="right")
    models = list(dict.fromkeys(row.model for row in rows))
    for row in sorted(rows, key=lambda row: (models.index(row.model), row.temperature)):
        cells = [form.format(row.metrics[metric]) for _, metric, form in columns]
        shown.add_row(row.model, f"{row.temperature:g}", *cells)
    return shown


def advantage(row: Evaluated, curve: Sequence[Evaluated], quality: str) -> str:
    """How far a model lies above a temperature curve at its own distinct-2, by linear interpolation on the curve."""
    name = f"{row.model} at temperature {row.temperature:g} against {curve[0].model}"
    points = sorted((other.metrics["eval/distinct_2"], other.metrics[quality]) for other in curve)
    diversity = row.metrics["eval/distinct_2"]
    if not points[0][0] <= diversity <= points[-1][0]:
        return f"{name}: distinct-2 {diversity:.3f} lies outside the curve ({points[0][0]:.3f} to {points[-1][0]:.3f})"
    across, up = zip(*points, strict=True)
    level = float(np.interp(diversity, across, up))
    return (
        f"{name}, at equal distinct-2 {diversity:.3f}: {row.metrics[quality]:.3f} against {level:.3f} "
        f"({row.metrics[quality] - level:+.3f})"
    )


def _point(metrics: Metrics, quality: str, *, label: str) -> QualityPoint:
    return QualityPoint(
        judged_share=metrics[quality],
        perplexity=metrics["eval/perplexity"],
        distinct_2=metrics["eval/distinct_2"],
        self_bleu=metrics["eval/self_bleu"],
        label=label,
        judged_share_stderr=metrics.get("eval/judge_share_stderr", 0.0),
    )
