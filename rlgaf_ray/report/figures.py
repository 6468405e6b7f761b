"""The curves of one or several runs, in the form of the paper's figures 2 and 3 and beyond."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from rlgaf_ray.report.runs import Run

# Mid-tones, readable on white and on black; the first three also differ in lightness, for the colour-blind.
COLOURS = ("#1f77d0", "#e0662c", "#3a9c60", "#a763c9", "#b08a1e", "#d1497d", "#5b8c99", "#8a8a8a")
GREY = "#808080"
STYLE: dict[Any, Any] = {  # matplotlib types every key by name
    "svg.fonttype": "none",  # text stays text: it can be searched, and takes the page's font
    "svg.hashsalt": "rlgaf_ray",  # the same run gives the same file
    "font.size": 9,
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
SMOOTHING = 10  # iterations of the moving mean that is drawn over the raw points


@dataclass(frozen=True, slots=True)
class Curve:
    """One panel: metrics drawn together, for every run."""

    name: str  # of the file
    title: str
    unit: str
    metrics: tuple[str, ...]
    reference: str | None = None  # a metric drawn as a dotted level: what real text reaches


CURVES = (
    Curve("reward", "Reward of the rollouts", "reward", ("reward/mean",)),
    Curve("generator_loss", "Generator's loss", "loss", ("generator/loss",)),
    Curve("discriminator_loss", "Discriminator's loss", "nats", ("discriminator/loss",)),
    Curve(
        "discriminator_accuracy",
        "Discriminator's accuracy: real, fake",
        "share",
        ("discriminator/accuracy_real", "discriminator/accuracy_fake"),
    ),
    Curve("kl", "KL from the SFT model", "nats/token", ("generator/kl",)),
    Curve("entropy", "Entropy of the policy", "nats/token", ("generator/entropy",)),
    Curve("length", "Response length", "tokens", ("rollout/response_tokens",)),
    Curve("diversity", "Distinct 2-grams of the rollouts", "share", ("rollout/distinct_2",)),
    Curve("judge", "Held out: judged as wanted", "share", ("eval/judge_share",), "eval/judge_share_real"),
    Curve("perplexity", "Held out: perplexity under the SFT model", "perplexity", ("eval/perplexity",)),
    Curve("real_nll", "Held out: NLL of real text", "nats/token", ("eval/real_nll",)),
    Curve("speed", "Rollouts per second", "1/s", ("rollout/samples_per_second",)),
)


def draw(curve: Curve, runs: Sequence[Run]) -> Figure | None:
    """The panel over all runs; None where no run logged it."""
    with rc_context(STYLE):
        figure = Figure(figsize=(4.6, 2.9), layout="constrained")
        axes = figure.add_subplot()
        drawn = False
        for run, colour in zip(runs, COLOURS * (1 + len(runs) // len(COLOURS)), strict=False):
            for line, metric in zip(("-", "--"), curve.metrics, strict=False):
                x, y = run.series(metric)
                if not y:
                    continue
                drawn = True
                label = run.name if len(curve.metrics) == 1 else f"{run.name}, {metric.rsplit('_')[-1]}"
                many = len(y) > 3 * SMOOTHING
                if many:
                    axes.plot(x, y, line, color=colour, alpha=0.25)
                    axes.plot(x, moving_mean(y), line, color=colour, label=label)
                else:
                    axes.plot(x, y, line, color=colour, label=label, marker="o", markersize=3)
            if curve.reference and (level := run.last(curve.reference)) is not None:
                axes.axhline(level, color=colour, linestyle=":", label=f"{run.name}, real text")
        if not drawn:
            return None
        axes.set_title(curve.title, loc="left")
        axes.set_xlabel("iteration")
        axes.set_ylabel(curve.unit)
        if len(runs) > 1 or len(curve.metrics) > 1 or curve.reference:
            axes.legend(fontsize=7)
        return figure


def moving_mean(values: Sequence[float]) -> list[float]:
    """The mean of each value and those before it, at most ``SMOOTHING`` together."""
    means = []
    for end in range(1, len(values) + 1):
        window = values[max(0, end - SMOOTHING) : end]
        means.append(sum(window) / len(window))
    return means


def svg(figure: Figure) -> str:
    """The figure as an SVG element, without prologue and date."""
    with rc_context(STYLE):
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def save(figure: Figure, path: Path) -> None:
    """A file of the kind that its suffix says: .png on white at 200 dots an inch, or .svg."""
    with rc_context(STYLE):
        figure.savefig(path, dpi=200, facecolor="white", metadata={"Date": None} if path.suffix == ".svg" else None)
