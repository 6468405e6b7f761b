"""Learning curves of one or several runs (figures 2 and 3 of the paper and more) and quality against diversity."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from rlgaf_ray.metrics import metric, own
from rlgaf_ray.report.runs import Run

# Readable on white and on black; the first three also differ in lightness, for colour-blind readers.
COLOURS = ("#1f77d0", "#e0662c", "#3a9c60", "#a763c9", "#b08a1e", "#d1497d", "#5b8c99", "#8a8a8a")
GREY = "#808080"
STYLE: dict[Any, Any] = {  # Any: matplotlib's stubs list every key as a literal
    "svg.fonttype": "none",  # text is searchable and uses the page's font
    "svg.hashsalt": "rlgaf_ray",  # deterministic files
    "text.parse_math": False,  # "$" in a run's name is not a formula
    "font.size": 9.5,
    "axes.titlesize": 11,
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "axes.titlecolor": GREY,
    "text.color": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GREY,
    "grid.alpha": 0.2,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.frameon": False,
}
LEGEND_LINE = 0.18  # inches
LONGEST_LABEL = 44  # characters that fit into a panel
SMOOTHING = 10  # window of the moving mean drawn over the raw points, in iterations


@dataclass(frozen=True, slots=True)
class Curve:
    """One panel: metrics plotted together for every run; a dotted line shows the level of real text, if logged."""

    name: str  # file name without suffix
    metrics: tuple[str, ...]

    @property
    def title(self) -> str:
        first = metric(self.metrics[0])
        if len(self.metrics) > 1:
            words = ", ".join(name.rpartition("_")[2] for name in self.metrics)
            return _capital(f"{metric(self.metrics[0].rpartition('_')[0]).line}: {words}")
        return f"Held out: {first.line}" if first.owner == "eval" else _capital(first.line)

    @property
    def unit(self) -> str:
        return metric(self.metrics[0]).axis

    @property
    def reference(self) -> str | None:
        """The metric that holds the value of real text."""
        real = metric(self.metrics[0]).real
        return real if isinstance(real, str) and len(self.metrics) == 1 else None


CURVES = (
    Curve("reward", ("reward/mean",)),
    Curve("generator_loss", ("generator/loss",)),
    Curve("discriminator_loss", ("discriminator/loss",)),
    Curve("discriminator_accuracy", ("discriminator/accuracy_real", "discriminator/accuracy_fake")),
    Curve("kl", ("generator/kl",)),
    Curve("entropy", ("generator/entropy",)),
    Curve("length", ("rollout/response_tokens",)),
    Curve("diversity", ("rollout/distinct_2",)),
    Curve("judge", ("eval/judge_share",)),
    Curve("vader", ("eval/vader_share",)),
    Curve("embedding_judge", ("eval/embedding_share",)),
    Curve("closeness", ("eval/closeness",)),
    Curve("two_sample", ("eval/two_sample_auc",)),
    Curve("embedding_two_sample", ("eval/embedding_two_sample_auc",)),
    Curve("success", ("eval/success",)),
    Curve("f1", ("eval/f1",)),
    Curve("length_distance", ("eval/length_distance",)),
    Curve("perplexity", ("eval/perplexity",)),
    Curve("held_out_diversity", ("eval/distinct_2",)),
    Curve("self_bleu", ("eval/self_bleu",)),
    Curve("copied", ("eval/copied",)),
    Curve("real_nll", ("eval/real_nll",)),
    Curve("speed", ("rollout/samples_per_second",)),
)


def curves(runs: Sequence[Run]) -> list[Curve]:
    """Return ``CURVES``, preceded by the metrics that only the runs' tasks log."""
    logged = own(name for run in runs for row in run.rows for name in row)
    names = [name for name in logged if metric(name).owner == "eval"]
    return [*(Curve(file_name(name), (name,)) for name in names), *CURVES]


def file_name(metric: str) -> str:
    """Turn a metric's name into a file name."""
    return re.sub(r"[^\w.-]", "_", metric)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def draw(curve: Curve, runs: Sequence[Run]) -> Figure | None:
    """Draw the panel over all runs; None if no run logged its metrics."""
    with rc_context(STYLE):
        figure = Figure(figsize=(4.2, 2.7), layout="constrained")
        axes = figure.add_subplot()
        drawn = False
        for run, colour in zip(runs, COLOURS * (1 + len(runs) // len(COLOURS)), strict=False):
            for line, name in zip(("-", "--"), curve.metrics, strict=False):
                x, y = run.series(name)
                if not y:
                    continue
                drawn = True
                kind = name.rsplit("_")[-1] if len(curve.metrics) > 1 else ""
                label = shown(", ".join(filter(None, (run.name if len(runs) > 1 or not kind else "", kind))))
                many = len(y) > 3 * SMOOTHING
                if many:
                    axes.plot(x, y, line, color=colour, alpha=0.35)
                    axes.plot(x, moving_mean(y), line, color=colour, label=label)
                else:
                    axes.plot(x, y, line, color=colour, label=label, marker="o", markersize=3)
            if curve.reference and (level := run.last(curve.reference)) is not None:
                axes.axhline(
                    level,
                    color=colour,
                    linestyle=":",
                    label=shown(f"{run.name}, real text" if len(runs) > 1 else "real text"),
                )
        if not drawn:
            return None
        axes.set_title(curve.title, loc="left")
        axes.set_xlabel("iteration")
        axes.set_ylabel(curve.unit)
        if len(runs) > 1 or len(curve.metrics) > 1 or curve.reference:
            # The legend is below the axes, so that it hides no curve; extend the figure for it.
            legend = figure.legend(loc="outside lower left", fontsize=8.5, ncols=1 if len(runs) > 1 else 2)
            figure.set_figheight(figure.get_figheight() + LEGEND_LINE * (len(legend.texts) if len(runs) > 1 else 1))
        return figure


@dataclass(frozen=True, slots=True)
class QualityPoint:
    """One model at one temperature, on held-out prompts."""

    judged_share: float
    perplexity: float  # of the samples under the SFT model
    distinct_2: float
    self_bleu: float
    label: str = ""  # shown beside the point, such as the temperature
    judged_share_stderr: float = 0.0


@dataclass(frozen=True, slots=True)
class QualityCurve:
    """One model at several temperatures, or several single models."""

    name: str
    points: tuple[QualityPoint, ...]  # in the order of the line
    adversarial: bool = False  # drawn as stars without a line


def quality_diversity(
    curves: Sequence[QualityCurve], *, real: QualityPoint | None = None, quality_name: str = "judged as wanted"
) -> Figure:
    """Plot quality against diversity, which shows the cost of a gain in either.

    "Language GANs Falling Short" (Caccia et al. 2020, arXiv 1811.02549): a lower temperature alone raises quality and
    lowers diversity, so an adversarial model has to be above the SFT model's whole curve. The four panels plot judged
    share and perplexity (log scale) against distinct-2 and self-BLEU; diversity increases to the right in each.
    ``real`` adds real text: its judged share as a dotted line, its point as a diamond.

    Raises ``ValueError`` if no curve has a point.
    """
    if not any(curve.points for curve in curves):
        raise ValueError("the quality-diversity figure needs at least one evaluated model")
    with rc_context(STYLE):
        figure = Figure(figsize=(9.4, 7.0), layout="constrained")
        panels = figure.subplots(2, 2, sharex="col", sharey="row")
        for row, (quality, title) in enumerate(
            (("judged_share", quality_name), ("perplexity", "perplexity under the SFT model"))
        ):
            for column, (diversity, diversity_name) in enumerate(
                (("distinct_2", "distinct-2"), ("self_bleu", "self-BLEU, axis reversed"))
            ):
                axes = panels[row, column]
                for curve, colour in zip(curves, COLOURS * (1 + len(curves) // len(COLOURS)), strict=False):
                    x = [getattr(point, diversity) for point in curve.points]
                    y = [getattr(point, quality) for point in curve.points]
                    errors = [point.judged_share_stderr for point in curve.points]
                    axes.errorbar(
                        x,
                        y,
                        yerr=errors if quality == "judged_share" and any(errors) else None,
                        color=colour,
                        linestyle="none" if curve.adversarial else "-",
                        marker="*" if curve.adversarial else "o",
                        markersize=11 if curve.adversarial else 4,
                        elinewidth=0.8,
                        label=shown(curve.name),
                        zorder=3 if curve.adversarial else 2,
                    )
                    for point, left, top in zip(curve.points, x, y, strict=True):
                        axes.annotate(point.label, (left, top), xytext=(5, 5), textcoords="offset points", fontsize=8)
                if real is not None:
                    if quality == "judged_share":
                        axes.axhline(real.judged_share, color=GREY, linestyle=":")
                    axes.plot(
                        getattr(real, diversity),
                        getattr(real, quality),
                        color=GREY,
                        marker="D",
                        linestyle="none",
                        label="real text",
                    )
                if row == 1:
                    axes.set_yscale("log")
                    axes.yaxis.set_minor_formatter("{x:.0f}")
                    axes.yaxis.set_major_formatter("{x:.0f}")
                    axes.set_xlabel(diversity_name)
                if column == 0:
                    axes.set_ylabel(title)
        panels[0, 1].invert_xaxis()  # shared with the panel below
        handles, labels = panels[0, 0].get_legend_handles_labels()
        if real is not None:  # matplotlib lists lines before error bars: move real text to the end
            handles, labels = handles[1:] + handles[:1], labels[1:] + labels[:1]
        figure.legend(handles, labels, loc="outside upper center", ncols=min(3, len(labels)), fontsize=9)
        return figure


def shown(name: str) -> str:
    """Shorten a label, and keep matplotlib's legend from dropping one that starts with an underscore."""
    name = name if len(name) <= LONGEST_LABEL else f"{name[: LONGEST_LABEL // 2]}…{name[-LONGEST_LABEL // 2 + 1 :]}"
    return f"\u200b{name}" if name.startswith("_") else name


def moving_mean(values: Sequence[float]) -> list[float]:
    """Return the mean of each value and up to ``SMOOTHING`` - 1 values before it."""
    means = []
    for end in range(1, len(values) + 1):
        window = values[max(0, end - SMOOTHING) : end]
        means.append(sum(window) / len(window))
    return means


def svg(figure: Figure) -> str:
    """Render the figure as an SVG element, without prologue and date."""
    with rc_context(STYLE):
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def save(figure: Figure, path: Path) -> None:
    """Write the figure as ``.png`` (200 dpi, white background) or ``.svg``, by the path's suffix."""
    with rc_context(STYLE):
        figure.savefig(path, dpi=200, facecolor="white", metadata={"Date": None} if path.suffix == ".svg" else None)
