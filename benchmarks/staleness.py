"""What staleness costs: the judged share at the end of whole runs, synchronous and k = 1, 2, 4 versions behind.

    python benchmarks/staleness.py --out FOLDER [--seeds 0 1 2] [--staleness 1 2 4] [--modes cap none] [key=value ...]

Runs ``rlgaf_ray.main`` one after the other, each in a process of its own, with and without importance weights
(``generator.importance_weight_mode``). Every rollout of an asynchronous run but the first is exactly k versions old.
A run that is complete in FOLDER is not repeated, one that was cut off goes on. Bar: the mean of each setting lies
within the synchronous seeds' spread, lowest to highest, widened by a standard error of one judged share.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

SHARE, ERROR = "eval/judge_share", "eval/judge_share_stderr"
COLUMNS = {
    SHARE: "judged share",
    "eval/gap_closed": "gap closed",
    "eval/perplexity_ratio": "perplexity ratio",
    "eval/distinct_2_ratio": "distinct-2 ratio",
    "generator/kl": "KL",
    "generator/engine_logprob_gap": "log-prob gap",
}
Row = dict[str, float]


def settings(staleness: list[int], modes: list[str]) -> dict[str, list[str]]:
    """Overrides of each row of the table."""
    rows = {"sync": ["schedule.mode=sync"]}
    for k in staleness:
        for mode in modes:
            rows[f"k{k}-{mode}"] = [
                "schedule.mode=async",
                f"schedule.max_staleness={k}",
                f"generator.importance_weight_mode={mode}",
            ]
    return rows


def last_row(folder: Path) -> Row | None:
    """The final metrics of a complete run."""
    if not (folder / "generator").is_dir():  # exported at the very end
        return None
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])


def train(out: Path, name: str, overrides: list[str]) -> Row:
    folder = out / name
    if (done := last_row(folder)) is not None:
        return done
    where = [f"run.root={out}", f"run.name={name}"]
    started = (folder / "checkpoints" / "latest").is_file()
    if folder.exists() and not started:
        raise SystemExit(f"{folder} holds a run that was cut off before its first checkpoint: remove it")
    words = ["--resume", *where] if started else [*overrides, *where]
    with (out / f"{name}.log").open("a") as log:
        subprocess.run([sys.executable, "-m", "rlgaf_ray.main", "train", *words], stdout=log, stderr=log, check=True)
    row = last_row(folder)
    assert row is not None, f"{name} ended without a result"
    return row


def show(results: dict[str, list[Row]], console: Console) -> bool:
    """The table; whether every mean lies where the bar asks."""
    shares = {name: [row[SHARE] for row in rows] for name, rows in results.items()}
    error = max(row[ERROR] for row in results["sync"])
    low, high = min(shares["sync"]) - error, max(shares["sync"]) + error
    table = Table(title=f"after the last iteration: mean of {len(shares['sync'])} seeds (lowest to highest)")
    for head in ("", *COLUMNS.values(), f"{low:.3f} to {high:.3f}"):
        table.add_column(head, justify="right" if head else "left")
    met = True
    for name, rows in results.items():
        columns = [[row[column] for row in rows] for column in COLUMNS]
        within = low <= statistics.mean(shares[name]) <= high
        met &= within
        table.add_row(
            name,
            *(f"{statistics.mean(column):.3f} ({min(column):.3f} to {max(column):.3f})" for column in columns),
            "within" if within else "outside",
        )
    console.print(table)
    return met


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--staleness", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--modes", nargs="+", default=["cap", "none"], choices=["cap", "mask", "none"])
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    asked = parser.parse_intermixed_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    results: dict[str, list[Row]] = {}
    for name, overrides in settings(asked.staleness, asked.modes).items():
        for seed in asked.seeds:
            console.print(f"{name}, seed {seed}")
            row = train(asked.out.resolve(), f"{name}-seed{seed}", [*asked.overrides, *overrides, f"run.seed={seed}"])
            results.setdefault(name, []).append(row)
    (asked.out / "staleness.json").write_text(json.dumps(results, indent=1))
    return 0 if show(results, console) else 1


if __name__ == "__main__":
    sys.exit(main())
