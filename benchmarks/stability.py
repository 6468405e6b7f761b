"""How stable 300 iterations are: the plain settings of the paper's method against the recommended ones.

    python benchmarks/stability.py [--groups plain,recommended,fresh,ablations] [--root runs/stability] [key=value ...]

The default task (positive film reviews, small), 2,000 held-out prompts an evaluation. ``plain``: REINFORCE on the
whole score with a leave-one-out baseline and a sampled KL in the reward, seeds 0 to 2. ``recommended``:
``configs/stable.yaml --small``, seeds 0 to 2, and five ``fresh`` seeds that neither it nor the guard's limits were
chosen on. ``ablations``: the recommended settings with one of them taken back at a time, seed 0. Runs that stand
under ``--root`` are read, or go on where they were cut off. The bars (``BARS``) are for the recommended settings, over
all eight seeds.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rlgaf_ray.report.runs import Run, load_run

RECOMMENDED = Path(__file__).parents[1] / "configs" / "stable.yaml"
SETTLED = 150  # iterations from which on the gap closed must hold
WHOLE_SCORE = ["generator.reinforce.credit=sequence", "generator.reinforce.baseline=leave_one_out"]
SAMPLED_KL = ["generator.reinforce.kl={coefficient: 0.05, estimator: k1, placement: reward}"]
PLAIN = [*WHOLE_SCORE, *SAMPLED_KL, "discriminator.contrast_weight=1.0"]  # evaluated as it is: no moving average
ABLATIONS = {
    "whole score, leave-one-out": WHOLE_SCORE,
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


@dataclass(frozen=True)
class Trial:
    group: str
    seed: int
    settings: list[str]

    @property
    def name(self) -> str:
        kept = "".join(letter if letter.isalnum() else "-" for letter in self.group)
        return f"{kept}-{self.seed}"


def trials(groups: list[str]) -> list[Trial]:
    found = []
    for group in groups:
        match group:
            case "plain":
                found += [Trial("plain", seed, PLAIN) for seed in range(3)]
            case "recommended":
                found += [Trial("recommended", seed, []) for seed in range(3)]
            case "fresh":
                found += [Trial("recommended", seed, []) for seed in range(3, 8)]
            case "ablations":
                found += [Trial(name, 0, settings) for name, settings in ABLATIONS.items()]
            case _:
                raise SystemExit(f"--groups: {group!r} is none of plain, recommended, fresh, ablations")
    return found


def run_of(trial: Trial, root: Path, more: list[str]) -> Run:
    """The finished run, read where it stands already."""
    folder = root / trial.name
    if not (folder / "generator").is_dir():  # written last
        config = [] if trial.group == "plain" else [str(RECOMMENDED), "--small"]
        shared = ["run.iterations=300", "evaluation.every=50", f"run.seed={trial.seed}"]
        places = [f"run.name={trial.name}", f"run.root={root}"]
        command = [sys.executable, "-m", "rlgaf_ray.main", *config, *shared, *trial.settings, *more, *places]
        if folder.is_dir():  # cut off: it goes on
            command = [sys.executable, "-m", "rlgaf_ray.main", *places, "--resume"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{trial.name} ended with code {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    return load_run(folder)


def figures(run: Run) -> dict[str, float]:
    """One run's row, in the order of ``BARS``."""
    iterations, gaps = run.series("eval/gap_closed")
    settled = [gap for iteration, gap in zip(iterations, gaps, strict=True) if iteration >= SETTLED]
    if not settled:
        raise SystemExit(f"{run.folder} has no evaluation from iteration {SETTLED} on")
    _, losses = run.series("eval/real_nll")
    _, healthy = run.series("guard/healthy")
    values = [
        statistics.mean(settled),
        min(settled),
        run.last("eval/perplexity_ratio"),
        run.last("eval/distinct_2_ratio"),
        losses[-1] - losses[0],
        float(min(healthy) < 1),
    ]
    return dict(zip(BARS, values, strict=True)) | {"gap closed": gaps[-1]}


def met(name: str, values: list[float]) -> bool:
    """The mean gap is judged over the seeds together, everything else in every run."""
    sign, bar = BARS[name]
    judged = [statistics.mean(values)] if name.startswith("mean") else values
    return all(value >= bar if sign == ">=" else value <= bar for value in judged)


def table_of(rows: dict[str, list[dict[str, float]]]) -> Table:
    table = Table(title="300 iterations, 2,000 held-out prompts an evaluation: mean over seeds (lowest to highest)")
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
    arguments, more = parser.parse_known_args()
    console = Console()
    rows: dict[str, list[dict[str, float]]] = {}
    todo = trials(arguments.groups.split(","))
    for number, trial in enumerate(todo, start=1):
        run = run_of(trial, arguments.root.absolute(), more)
        row = figures(run)
        rows.setdefault(trial.group, []).append(row)
        shown = ", ".join(f"{name} {value:.3f}" for name, value in row.items())
        console.print(f"{number}/{len(todo)} {trial.name}: {shown}")
    console.print(table_of(rows))
    if "recommended" not in rows:
        return 0
    missed = [name for name in BARS if not met(name, [row[name] for row in rows["recommended"]])]
    console.print("every bar is met" if not missed else f"missed: {', '.join(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
