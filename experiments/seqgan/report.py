"""What SeqGAN's synthetic experiment found: the table, the picture, and the point to compare with."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import matplotlib
from rich.table import Table
from training import lowest

BAR = 0.25
MEASURES = ("nll_oracle", "nll_gen", "entropy")


def at_equal(sweep: list[dict[str, float]], measure: str, value: float) -> dict[str, float] | None:
    """The MLE model between the two temperatures whose ``measure`` encloses the value; none outside the sweep."""
    for warm, cold in pairwise(sweep):
        low, high = sorted((warm[measure], cold[measure]))
        if low <= value <= high:
            share = (value - warm[measure]) / (cold[measure] - warm[measure])
            return {name: warm[name] + share * (cold[name] - warm[name]) for name in warm}
    return None


def draw(result: dict, path: Path) -> None:
    """Both measures through training, and the plane of the two."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (through, plane) = pyplot.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    mle, adversarial = result["mle"]["history"], result["adversarial"]["history"]
    start = result["sweep"]["nll_oracle"]
    end = len(mle) - 1
    scale = max(1, end) / max(1, adversarial[-1]["step"])  # both phases get half of the axis
    for measure, colour in (("nll_oracle", "tab:blue"), ("nll_gen", "tab:orange")):
        through.plot([point[measure] for point in mle], color=colour, label=measure)
        steps = [end + point["step"] * scale for point in adversarial]
        through.plot(steps, [point[measure] for point in adversarial], color=colour)
    through.axvline(end, color="grey", linestyle=":")
    through.axhline(result["references"]["real"], color="grey", linestyle="--", label="real sequences")
    through.set(xlabel=f"{end} epochs of MLE, then {adversarial[-1]['step']} adversarial steps", ylabel="nats a token")
    through.legend()
    for points, form, label in (
        (mle[1:], ".", "MLE epochs"),
        (start, "o-", "MLE epoch of the lowest NLL_oracle, colder"),
        (result["sweep"]["nll_gen"], "s-", "MLE epoch of the lowest NLL_gen, colder"),
        (adversarial, ".-", "adversarial"),
    ):
        plane.plot([p["nll_gen"] for p in points], [p["nll_oracle"] for p in points], form, label=label)
    for point in start:
        plane.annotate(f"{point['temperature']:g}", (point["nll_gen"], point["nll_oracle"]), fontsize=7)
    best = result["adversarial"]["best"]
    plane.plot(best["nll_gen"], best["nll_oracle"], "*", markersize=14, color="tab:red", label="adversarial, best step")
    plane.set(xlabel="NLL_gen (coverage)", ylabel="NLL_oracle (quality)", title="both better towards the lower left")
    plane.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def table(result: dict) -> Table:
    adversarial, mle = result["adversarial"], result["mle"]["history"]
    best, last = adversarial["best"], adversarial["last"]
    grid = Table(title=f"Seed {result['seed']}: nats a token; gain {result['gain']:.3f} (bar: {BAR})")
    for head in ("", *MEASURES, "minutes"):
        grid.add_column(head, justify="right" if head else "left")

    def row(name: str, point: dict[str, float] | None, seconds: float | None = None) -> None:
        figures = [f"{point[key]:.3f}" if point and key in point else "" for key in MEASURES]
        grid.add_row(name, *figures, "" if seconds is None else f"{seconds / 60:.1f}")

    for name, value in result["references"].items():
        row(name, {"nll_oracle": value})
    for measure, sweep in result["sweep"].items():
        epoch = f"MLE, epoch {lowest(mle, measure)} of {len(mle) - 1}: lowest {measure}"
        row(epoch, sweep[0], result["mle"]["seconds"] if measure == "nll_oracle" else None)
        for point in sweep[1:]:
            row(f"  at temperature {point['temperature']:g}", point)
    row(f"adversarial, step {best['step']}: lowest nll_oracle", best, adversarial["seconds"])
    row(f"adversarial, step {last['step']}: the end", last)
    for measure, point in result["mle_at_equal_nll_gen"].items():
        at = f"temperature {point['temperature']:.2f}" if point else "none"
        row(f"lowest {measure}, at the same nll_gen: {at}", point)
    return grid
