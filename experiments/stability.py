"""Stability over 300 iterations: the plain settings of the paper's method against the recommended ones.

    python experiments/stability.py [--groups plain,recommended,fresh,ablations] [--root FOLDER] [--jobs N]
        [key=value ...]

The default task (positive film reviews, small) with 2,000 held-out prompts per evaluation. ``plain``: REINFORCE on the
sequence score with a leave-one-out baseline and a sampled KL in the reward, seeds 0 to 2. ``recommended``:
``configs/stable.yaml --small``, seeds 0 to 2, and five ``fresh`` seeds that were not used to choose it or the guard's
limits. ``ablations``: the recommended settings with one of them reverted at a time, seed 0. Complete runs under
``--root`` are loaded, interrupted ones resumed. The bars (``BARS``) apply to the recommended settings, for each group
of seeds and for both together.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from trainings import OLD_DEFAULT, Training, last, trained

from rlgaf_ray.report.runs import Run

FROM_CONFIG = [str(Path(__file__).parents[1] / "configs" / "stable.yaml"), "--small"]
SEEDS = {"recommended": range(3), "fresh": range(10, 15)}
JUDGED = ("recommended", "fresh", "recommended and fresh")
SETTLED = 150  # the bars on the gap closed apply from this iteration on
SEQUENCE_SCORE = ["generator.reinforce.credit=sequence", "generator.reinforce.baseline=leave_one_out"]
SAMPLED_KL = ["generator.reinforce.kl={coefficient: 0.05, estimator: k1, placement: reward}"]
# without a moving average
PLAIN = [*OLD_DEFAULT, *SEQUENCE_SCORE, *SAMPLED_KL, "discriminator.contrast_weight=1.0"]
ABLATIONS = {
    "sequence score, leave-one-out": SEQUENCE_SCORE,
    "sampled KL in the reward, 0.05": SAMPLED_KL,
    "no demonstrations in the loss": ["generator.reinforce.demonstration_coefficient=0"],
    "no moving average": ["generator.average_decay=0"],
    "0.2 discriminator updates": ["discriminator.updates_per_generator_update=0.2"],
    "contrast weight 1.0": ["discriminator.contrast_weight=1.0"],
}
BARS = {
    "mean gap closed from 150 on": (">=", 0.85),
    "lowest gap closed": (">=", 0.70),
    "perplexity ratio": ("<=", 1.15),
    "distinct-2 ratio": (">=", 0.95),
    "NLL of real text": ("<=", 0.05),
    "unhealthy": ("<=", 0.0),
}


def trainings(groups: list[str]) -> list[tuple[str, Training]]:
    """Return each training with its group in the table."""
    found: list[tuple[str, Training]] = []
    for group in groups:
        match group:
            case "plain":
                found += [(group, training("plain", seed, PLAIN)) for seed in range(3)]
            case "recommended" | "fresh":
                found += [(group, training("recommended", seed, FROM_CONFIG)) for seed in SEEDS[group]]
            case "ablations":
                found += [(name, training(name, 0, [*FROM_CONFIG, *values])) for name, values in ABLATIONS.items()]
            case _:
                raise SystemExit(f"--groups: {group!r} is not one of plain, recommended, fresh, ablations")
    return found


def training(settings: str, seed: int, words: list[str]) -> Training:
    name = "".join(letter if letter.isalnum() else "-" for letter in settings)
    return Training(f"{name}-{seed}", [*words, "run.iterations=300", "evaluation.every=50", f"run.seed={seed}"])


def figures(run: Run) -> dict[str, float]:
    """Return the figures of one run, in the order of ``BARS``."""
    iterations, gaps = run.series("eval/gap_closed")
    settled = [gap for iteration, gap in zip(iterations, gaps, strict=True) if iteration >= SETTLED]
    if not settled:
        raise SystemExit(f"{run.folder} has no evaluation from iteration {SETTLED} on")
    _, losses = run.series("eval/real_nll")
    _, healthy = run.series("guard/healthy")
    values = [
        statistics.mean(settled),
        min(settled),
        last(run, "eval/perplexity_ratio"),
        last(run, "eval/distinct_2_ratio"),
        losses[-1] - losses[0],
        float(min(healthy) < 1),
    ]
    return dict(zip(BARS, values, strict=True)) | {"gap closed": gaps[-1]}


def missed(runs: list[dict[str, float]]) -> list[str]:
    """Return the missed bars: the mean gap is judged over all seeds, everything else for every run."""
    found = []
    for name, (sign, bar) in BARS.items():
        values = [run[name] for run in runs]
        judged = [statistics.mean(values)] if name.startswith("mean") else values
        if not all(value >= bar if sign == ">=" else value <= bar for value in judged):
            found.append(name)
    return found


def table_of(rows: dict[str, list[dict[str, float]]]) -> Table:
    table = Table(title="300 iterations, 2,000 held-out prompts per evaluation: mean over seeds (lowest to highest)")
    for head in ("settings", "seeds", "gap closed", *BARS):
        table.add_column(head, justify="left" if head == "settings" else "right")
    for group, runs in rows.items():
        cells = []
        for name in ("gap closed", *BARS):
            values = [run[name] for run in runs]
            form = "{:+.3f}" if name.startswith("NLL") else "{:.3f}" if "ratio" in name else "{:.1%}"
            cell = form.format(statistics.mean(values))
            if len(values) > 1 and name != "unhealthy":
                cell += f" ({form.format(min(values))} to {form.format(max(values))})"
            cells.append(cell)
        table.add_row(group, str(len(runs)), *cells)
    table.add_section()
    table.add_row("bar", "", "", *(f"{sign} {bar:g}" for sign, bar in BARS.values()))
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description="Stability over 300 iterations.")
    parser.add_argument("--groups", default="plain,recommended,fresh,ablations")
    parser.add_argument("--root", type=Path, default=Path("runs/stability"))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    arguments, more = parser.parse_known_args()
    console = Console()
    rows: dict[str, list[dict[str, float]]] = {}
    groups, todo = zip(*trainings(arguments.groups.split(",")), strict=True)
    runs = trained([Training(each.name, [*each.words, *more]) for each in todo], arguments.root, jobs=arguments.jobs)
    for number, (group, run) in enumerate(zip(groups, runs, strict=True), start=1):
        row = figures(run)
        rows.setdefault(group, []).append(row)
        shown = ", ".join(f"{name} {value:.3f}" for name, value in row.items())
        console.print(f"{number}/{len(todo)} {run.folder.name}: {shown}")
    if "recommended" in rows and "fresh" in rows:
        rows["recommended and fresh"] = [*rows["recommended"], *rows["fresh"]]
    console.print(table_of(rows))
    verdicts = {group: missed(rows[group]) for group in JUDGED if group in rows}
    for group, names in verdicts.items():
        console.print(f"{group}: {', '.join(names) or 'nothing'} missed")
    return int(any(verdicts.values()))


if __name__ == "__main__":
    sys.exit(main())
