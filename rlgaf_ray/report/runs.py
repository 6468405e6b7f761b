"""A run folder read back: its settings, its metrics, its samples."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

SAMPLES = "samples.jsonl"
VERDICTS = "guard.jsonl"


@dataclass(frozen=True, slots=True)
class Run:
    name: str
    folder: Path
    config: str  # YAML
    rows: list[dict[str, float | None]]  # of metrics.jsonl, in the order of iterations
    samples: list[tuple[str, str]]  # before, after
    verdicts: list[dict[str, Any]]  # what the guard found and did

    def series(self, metric: str) -> tuple[list[float], list[float]]:
        """Iterations and values where the metric was logged and finite."""
        points = [(row["iteration"], row[metric]) for row in self.rows if row.get(metric) is not None]
        return [float(x) for x, _ in points if x is not None], [float(y) for _, y in points if y is not None]

    def last(self, metric: str) -> float | None:
        _, values = self.series(metric)
        return values[-1] if values else None

    def first(self, metric: str) -> float | None:
        _, values = self.series(metric)
        return values[0] if values else None


def load_run(folder: str | Path) -> Run:
    """Read a run folder, finished or not. Raises ``ValueError`` where it is none."""
    folder = Path(folder).expanduser()
    metrics = folder / "metrics.jsonl"
    if not metrics.is_file():
        raise ValueError(f"{folder} is no run folder (no metrics.jsonl in it): give a folder such as runs/NAME")
    rows: list[dict[str, float | None]] = []
    for number, line in enumerate(metrics.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{metrics} is damaged: line {number} is no JSON; cut it off and try again") from error
    if not rows:
        raise ValueError(f"{metrics} is empty: the run has not finished an evaluation yet")
    config = folder / "config.yaml"
    text = config.read_text(encoding="utf-8") if config.is_file() else ""
    name = (yaml.safe_load(text) or {}).get("run", {}).get("name") or folder.name
    return Run(name, folder, text, rows, read_samples(folder / SAMPLES), _objects(folder / VERDICTS))


def save_samples(path: Path, before: list[str], after: list[str]) -> None:
    """The same prompts answered before and after, one JSON object a line."""
    pairs = zip(before, after, strict=False)
    path.write_text("".join(json.dumps({"before": first, "after": last}) + "\n" for first, last in pairs))


def read_samples(path: Path) -> list[tuple[str, str]]:
    """Before and after; none where the run has not ended yet."""
    return [(row["before"], row["after"]) for row in _objects(path)]


def _objects(path: Path) -> list[dict[str, Any]]:
    """One a line; none where there is no such file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
