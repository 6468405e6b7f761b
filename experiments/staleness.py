"""The cost of staleness: the judged share at the end of a run, synchronous and with k = 1, 2, 4 stale versions.

    python experiments/staleness.py --out FOLDER [--seeds 0 1 2] [--staleness 1 2 4] [--modes cap none] [--jobs N]
        [key=value ...]

The runs use the former default (configs/ablations/old_default.yaml without SFT), with and without importance weights
(``generator.importance_weight_mode``). In an asynchronous run, every rollout but those of the first iterations is
exactly k versions old. A run that is complete in FOLDER is not repeated, an interrupted one is resumed. Bar: the mean
of each setting is within the range of the synchronous seeds, widened by one standard error of a judged share.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from trainings import OLD_DEFAULT, Training, last, trained

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
    """Return the overrides of each row of the table."""
    rows = {"sync": ["schedule.mode=sync"]}
    for k in staleness:
        for mode in modes:
            rows[f"k{k}-{mode}"] = [
                "schedule.mode=async",
                f"schedule.max_staleness={k}",
                f"generator.importance_weight_mode={mode}",
            ]
    return rows


def show(results: dict[str, list[Row]], console: Console) -> bool:
    """Print the table; returns whether every mean meets the bar."""
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
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    asked = parser.parse_intermixed_args()
    console = Console()
    rows = settings(asked.staleness, asked.modes)
    names = [name for name in rows for _ in asked.seeds]
    todo = [
        Training(f"{name}-seed{seed}", [*OLD_DEFAULT, *asked.overrides, *overrides, f"run.seed={seed}"])
        for name, overrides in rows.items()
        for seed in asked.seeds
    ]
    results: dict[str, list[Row]] = {}
    for name, run in zip(names, trained(todo, asked.out, jobs=asked.jobs), strict=True):
        results.setdefault(name, []).append({column: last(run, column) for column in (*COLUMNS, ERROR)})
        console.print(f"{run.folder.name}: judged share {last(run, SHARE):.3f}")
    (asked.out / "staleness.json").write_text(json.dumps(results, indent=1))
    return 0 if show(results, console) else 1


if __name__ == "__main__":
    sys.exit(main())
