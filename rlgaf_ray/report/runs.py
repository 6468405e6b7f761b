"""Load a run folder: its config, metrics, samples and guard verdicts."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlgaf_ray.config.hidden import public
from rlgaf_ray.config.reader import read_yaml
from rlgaf_ray.errors import UserError

METRICS = "metrics.jsonl"  # one row per iteration

SAMPLES = "samples.jsonl"
VERDICTS = "guard.jsonl"


@dataclass(frozen=True, slots=True)
class Run:
    """The contents of a run folder."""

    name: str
    folder: Path
    config: str  # YAML
    rows: list[dict[str, float | None]]  # metrics.jsonl, sorted by iteration
    samples: list[tuple[str, str]]  # (before, after)
    verdicts: list[dict[str, Any]]  # the guard's verdicts and actions

    def series(self, metric: str) -> tuple[list[float], list[float]]:
        """Return the iterations and values where the metric is logged and finite."""
        points = [(row["iteration"], row[metric]) for row in self.rows if row.get(metric) is not None]
        return [float(x) for x, _ in points if x is not None], [float(y) for _, y in points if y is not None]

    def last(self, metric: str) -> float | None:
        _, values = self.series(metric)
        return values[-1] if values else None

    @property
    def evaluated(self) -> int:
        """Iteration of the newest evaluation; 0 if the run has logged none after the SFT model's."""
        rows = (row["iteration"] for row in self.rows if any(name.startswith("eval/") for name in row))
        return int(max((iteration or 0 for iteration in rows), default=0))

    @property
    def evaluations(self) -> tuple[dict[str, float | None], dict[str, float | None]]:
        """The SFT model's evaluation and the newest later one; each is empty if the run has not logged it."""
        evaluated = [
            {name: value for name, value in row.items() if name.startswith("eval/")}
            for row in self.rows
            if any(name.startswith("eval/") for name in row)
        ]
        return (evaluated[0], evaluated[-1] if len(evaluated) > 1 else {}) if evaluated else ({}, {})


def load_run(folder: str | Path) -> Run:
    """Read a run folder, finished or not. Raises ``UserError`` if it is not a run folder or is damaged."""
    folder = Path(os.path.expanduser(folder))
    metrics = folder / METRICS
    if not metrics.is_file():
        raise UserError(f"{folder} is not a run folder (it has no metrics.jsonl): give a folder such as runs/NAME")
    rows: list[dict[str, float | None]] = []
    for number, row in enumerate(_objects(metrics), start=1):
        if not isinstance(row.get("iteration"), int) or not all(
            value is None or isinstance(value, int | float) for value in row.values()
        ):
            raise UserError(f"{metrics} is damaged: line {number} has no iteration with numbers; delete that line")
        rows.append(row)
    if not rows:
        raise UserError(f"{metrics} is empty: the run has not logged an evaluation yet")
    config = folder / "config.yaml"
    text = public(_text(config)) if config.is_file() else ""
    return Run(
        _name(text, config) or folder.name,
        folder,
        text,
        rows,
        read_samples(folder / SAMPLES),
        _objects(folder / VERDICTS),
    )


def save_samples(path: Path, before: list[str], after: list[str]) -> None:
    """Write responses to the same prompts before and after training, one JSON object per line."""
    pairs = zip(before, after, strict=False)
    lines = (json.dumps({"before": first, "after": last}) + "\n" for first, last in pairs)
    path.write_text("".join(lines), encoding="utf-8")


def read_samples(path: Path) -> list[tuple[str, str]]:
    """Read the (before, after) samples; empty if the run has not finished yet."""
    rows = _objects(path)
    for number, row in enumerate(rows, start=1):
        if not all(isinstance(row.get(side), str) for side in ("before", "after")):
            raise UserError(f"{path} is damaged: line {number} has no 'before' and 'after' texts; delete that line")
    return [(row["before"], row["after"]) for row in rows]


def _name(config: str, path: Path) -> str | None:
    try:
        tree = read_yaml(config) or {}
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    run = tree.get("run") if isinstance(tree, dict) else None
    name = run.get("name") if isinstance(run, dict) else None
    return name if isinstance(name, str) else None


def _objects(path: Path) -> list[dict[str, Any]]:
    """Read one JSON object per line; empty if there is no such file. Raises ``UserError`` naming a damaged line."""
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is damaged: line {number} is not JSON; delete that line and try again") from error
        if not isinstance(row, dict):
            raise UserError(f"{path} is damaged: line {number} is not a JSON object; delete that line and try again")
        rows.append(row)
    return rows


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged: byte {error.start} is not UTF-8") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
