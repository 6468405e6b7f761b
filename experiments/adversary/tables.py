"""The tables of docs/adversary.md, from the rows that ``run.py`` has appended.

    python experiments/adversary/tables.py --part test

Differences are paired over replicates: mean, 95 % interval and p-value of a two-sided t test, with Holm's correction
over the judges. The interval of a judge's difference is also found by a bootstrap over replicates and prompts. The
pilot's deviations give the smallest difference that a test with more replicates would find (``--replicates``).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rows import HERE, lines_of

from rlgaf_ray.compare.statistics import LEVEL, POWER, Difference, bootstrap, holm

JUDGES = {"judge": "linear judge", "vader": "VADER", "embedding": "embedding judge"}
SHARES = {f"eval/{judge}_share": title for judge, title in JUDGES.items()}
MEASURES = {
    "eval/panel_share": "mean of the judges",
    "eval/two_sample_auc": "two-sample AUC, words",
    "eval/embedding_two_sample_auc": "two-sample AUC, embeddings",
    "eval/two_sample_accuracy": "two-sample accuracy, words",
    "eval/real_nll": "NLL of real text",
    "eval/perplexity": "perplexity",
    "eval/distinct_2": "distinct-2",
    "eval/self_bleu": "self-BLEU",
    "eval/copied": "copied",
    "eval/closeness": "closeness",
    "discriminator/held_out_auc": "AUC of D",
}


@dataclass(frozen=True)
class Row:
    """All replicates of a row on one part."""

    name: str
    lines: dict[int, dict[str, Any]]
    folder: Path

    @classmethod
    def load(cls, folder: Path, name: str) -> Row:
        return cls(name, lines_of(folder, name), folder)

    def value(self, replicate: int, metric: str, temperature: float = 1.0) -> float:
        return float(self.lines[replicate]["final"][str(temperature)][metric])

    def has(self, metric: str, temperature: float = 1.0) -> bool:
        """Rows without a trained discriminator have none of its measures."""
        return all(metric in line["final"][str(temperature)] for line in self.lines.values())

    def temperatures(self) -> list[float]:
        return sorted(float(key) for key in next(iter(self.lines.values()))["final"])

    def verdicts(self, replicate: int, judge: str, temperature: float = 1.0) -> np.ndarray:
        """bool [responses, prompts]; the prompts' number is a multiple of eight."""
        with np.load(self.folder / "verdicts" / f"{self.name}-{replicate}.npz", allow_pickle=False) as stored:
            return np.unpackbits(stored[f"{judge}@{temperature}"], axis=1).astype(bool)


def paired(one: Row, other: Row, metric: str) -> Difference:
    shared = sorted(set(one.lines) & set(other.lines))
    return Difference.of([one.value(each, metric) - other.value(each, metric) for each in shared])


def bootstrapped(one: Row, other: Row, judge: str, temperature: float = 1.0) -> tuple[float, float]:
    """95 % interval of the difference of a judge's shares."""
    shared = sorted(set(one.lines) & set(other.lines))
    return bootstrap(
        [
            one.verdicts(each, judge).mean(axis=0) - other.verdicts(each, judge, temperature).mean(axis=0)
            for each in shared
        ]
    )


def above_curve(row: Row, sft: Row, metric: str) -> Difference:
    """The row's share minus the swept SFT model's at the row's distinct-2, by linear interpolation."""
    gaps = []
    for each in sorted(set(row.lines) & set(sft.lines)):
        points = sorted((sft.value(each, "eval/distinct_2", t), sft.value(each, metric, t)) for t in sft.temperatures())
        here = row.value(each, "eval/distinct_2")
        gaps.append(row.value(each, metric) - float(np.interp(here, *np.array(points).T)))
    return Difference.of(gaps)


def difference_from_frontier(row: Row, frontier: Sequence[Row], metric: str) -> tuple[Difference, int]:
    """The row's value minus the frontier's at the same mean of the judges, linear between the frontier's rows.

    Beyond its ends the frontier has the value of its nearest row; also returns the number of such replicates.
    """
    gaps, beyond = [], 0
    for each in sorted(set(row.lines).intersection(*(other.lines for other in frontier))):
        points = np.array(sorted((one.value(each, "eval/panel_share"), one.value(each, metric)) for one in frontier))
        here = row.value(each, "eval/panel_share")
        gaps.append(row.value(each, metric) - float(np.interp(here, *points.T)))
        beyond += not points[0, 0] <= here <= points[-1, 0]
    return Difference.of(gaps), beyond


def best_temperature(validation: Row) -> float:
    """The SFT model's temperature of the highest mean closeness on the validation part."""
    means = {
        t: np.mean([validation.value(each, "eval/closeness", t) for each in validation.lines])
        for t in validation.temperatures()
    }
    return max(means, key=lambda t: means[t])


def absolute(rows: Sequence[tuple[str, Row, float]]) -> str:
    """Means over replicates of every measure, beside real text where it has one."""
    metrics = SHARES | MEASURES
    lines = ["| | real text | " + " | ".join(title for title, _, _ in rows) + " |", "|---" * (len(rows) + 2) + "|"]
    for metric, title in metrics.items():
        cells = []
        for _, row, temperature in rows:
            values = (
                [row.value(each, metric, temperature) for each in row.lines] if row.has(metric, temperature) else []
            )
            cells.append(f"{np.mean(values):.3f}" if values else "")
        first = next(iter(rows[0][1].lines.values()))["final"]["1.0"]
        real = first.get(f"{metric}_real")
        lines.append(f"| {title} | {'' if real is None else f'{real:.3f}'} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def differences(row: Row, sft: Row, title: str, replicates: int | None = None) -> str:
    """One row against SFT, every measure with its interval and p-value, or what ``replicates`` of them would find."""
    shares = {judge: f"eval/{judge}_share" for judge in JUDGES}
    found = {name: paired(row, sft, metric) for name, metric in shares.items()}
    corrected = dict(zip(found, holm([item.p for item in found.values()]), strict=True))
    count = next(iter(found.values())).count
    lines = [
        f"**{title}**, {count} replicates",
        "",
        "| | difference, 95 % interval | bootstrap | p |",
        "|---|---|---|---|",
    ]
    for judge, item in found.items():
        low, high = bootstrapped(row, sft, judge)
        lines.append(f"| {JUDGES[judge]} | {item} | [{low:+.3f}, {high:+.3f}] | {corrected[judge]:.2g} (Holm) |")
    shown = {metric: name for metric, name in MEASURES.items() if row.has(metric) and sft.has(metric)}
    for metric, name in shown.items():
        item = paired(row, sft, metric)
        lines.append(f"| {name} | {item} | | {item.p:.2g} |")
    if replicates is not None:
        smallest = {name: paired(row, sft, metric) for metric, name in (SHARES | shown).items()}
        listed = ", ".join(f"{name} {item.detectable(replicates):.3f}" for name, item in smallest.items())
        lines.append(f"\nWith {replicates} replicates, p < {LEVEL:g} and power {POWER:g} a test finds: {listed}.\n")
    for metric, name in (("eval/perplexity", "perplexity ratio"), ("eval/distinct_2", "distinct-2 ratio")):
        shared = sorted(set(row.lines) & set(sft.lines))
        ratio = Difference.of([row.value(each, metric) / sft.value(each, metric) for each in shared])
        lines.append(f"| {name} | {ratio.mean:.3f} [{ratio.low:.3f}, {ratio.high:.3f}] | | |")
    if len(sft.temperatures()) > 1:
        for judge, metric in shares.items():
            item = above_curve(row, sft, metric)
            lines.append(f"| {JUDGES[judge]}, above the SFT curve at equal distinct-2 | {item} | | {item.p:.2g} |")
    return "\n".join(lines)


def told_apart(row: Row) -> str:
    """At the evaluations of all replicates: AUC of D minus a fresh linear classifier's on the same rows."""
    gaps: dict[str, list[float]] = {"full": [], "quick": []}
    below = count = 0
    for line in row.lines.values():
        for each in line["history"]:
            for kind, prefix, linear in (("full", "discriminator", "eval"), ("quick", "quick", "quick")):
                if f"{linear}/two_sample_auc" in each and f"{prefix}/held_out_auc" in each:
                    gaps[kind].append(each[f"{prefix}/held_out_auc"] - each[f"{linear}/two_sample_auc"])
                    below += each[f"{prefix}/information"] + each[f"{prefix}/information_interval"] < 0
                    count += 1
    every = [gap for kind in gaps.values() for gap in kind]
    if not every:
        return f"{row.name}: no evaluations"
    shown = ", ".join(f"{np.mean(found):+.3f} at {len(found)} {kind} ones" for kind, found in gaps.items() if found)
    return (
        f"{row.name}: AUC of D minus a fresh linear classifier's {np.mean(every):+.3f} on average over {len(every)} "
        f"evaluations ({shown}); information below 0 by its interval at {below} of {count}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("validation", "test"), default="test")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--rows", nargs="*", help="default: every row there is")
    parser.add_argument("--baseline", default="sft")
    parser.add_argument("--frontier", nargs="*", default=[], help="rows of one sweep: --rows at their judged shares")
    parser.add_argument("--replicates", type=int, help="say what so many would find")
    arguments = parser.parse_args()
    folder = arguments.results / arguments.part
    names = arguments.rows or sorted(file.stem for file in folder.glob("*.jsonl"))
    rows = {name: Row.load(folder, name) for name in names}
    sft = Row.load(folder, arguments.baseline)
    columns = [(name, row, 1.0) for name, row in rows.items() if row.lines]
    if sft.lines and len(sft.temperatures()) > 1:
        validation = Row.load(arguments.results / "validation", arguments.baseline)
        best = best_temperature(validation if validation.lines else sft)
        columns.insert(0, (f"{arguments.baseline}, T = {best:g}", sft, best))
    print(absolute(columns))
    frontier = [Row.load(folder, name) for name in arguments.frontier]
    for name, row in rows.items() if frontier else ():
        for metric in ("eval/two_sample_accuracy", "eval/two_sample_auc", "eval/embedding_two_sample_auc"):
            item, beyond = difference_from_frontier(row, frontier, metric)
            print(
                f"{name}, {MEASURES[metric]} minus that of the frontier at the same mean of the judges: {item}, ",
                end="",
            )
            print(f"p = {item.p:.2g}, {item.count} replicates, {beyond} of them beyond the frontier's ends")
    for name, row in rows.items():
        if name != arguments.baseline and set(row.lines) & set(sft.lines):
            title = f"{name} against {arguments.baseline}"
            print(f"\n{differences(row, sft, title, arguments.replicates)}")
    print()
    for row in rows.values():
        if any(line["history"] for line in row.lines.values()):
            print(told_apart(row))


if __name__ == "__main__":
    main()
