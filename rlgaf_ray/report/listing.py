"""``rlgaf runs``: list the runs in a folder with their state, read from their files."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from rlgaf_ray.config import Config, ConfigError, load_config
from rlgaf_ray.config.uri import is_remote, local_path
from rlgaf_ray.errors import UserError
from rlgaf_ray.loop.run_folder import CONFIG, HOLDER, LOCK, TRIALS
from rlgaf_ray.metrics import metric
from rlgaf_ray.report.runs import METRICS, Run, load_run

HOLDING = re.compile(HOLDER.format(r"(\d+)", "(.+)"))
UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


@dataclass(frozen=True, slots=True)
class Listed:
    """One run; ``age`` is the time in seconds since it last wrote its metrics or config."""

    name: str
    state: str  # running, finished, stopped, failed, sweep, damaged
    iteration: int | None
    iterations: int | None
    metric: str | None  # the metric that selects the best checkpoint
    best: float | None
    best_iteration: int | None
    bytes: int
    age: float


def list_runs(root: str) -> list[Listed]:
    """List the runs directly in the folder, newest first. Raises ``UserError`` if there is no such local folder."""
    if is_remote(root):
        raise UserError(f"{root} is not a local folder, and rlgaf runs lists only local ones: give a local path")
    folder = local_path(root)
    if not folder.is_dir():
        raise UserError(f"{root} is not a folder: give the folder of run.root, as in rlgaf runs ROOT")
    folders = [path for path in folder.iterdir() if (path / CONFIG).is_file() or (path / METRICS).is_file()]
    return sorted((_listed(folder) for folder in folders), key=lambda run: run.age)


def as_records(runs: Sequence[Listed]) -> list[dict[str, Any]]:
    return [asdict(run) for run in runs]


def listing_table(runs: Sequence[Listed]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for head in ("run", "state", "iterations", "best", "size", "last written"):
        table.add_column(head, justify="left" if head in ("run", "state", "best") else "right", overflow="fold")
    for run in runs:
        reached = "" if run.iteration is None else f"{run.iteration}/{run.iterations or '?'}"
        best = ""
        if run.metric is not None and run.best is not None:
            best = f"{run.metric} {metric(run.metric).shown(run.best)} at {run.best_iteration}"
        table.add_row(run.name, run.state, reached, best, shown_size(run.bytes), f"{shown_age(run.age)} ago")
    return table


def shown_size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def shown_age(seconds: float) -> str:
    size, unit = next((each for each in UNITS if seconds >= each[0]), UNITS[-1])
    return f"{seconds / size:.0f} {unit}"


def best_of(run: Run, name: str) -> tuple[float, int] | None:
    """Return the metric's best value and its iteration; iteration 0 counts only if there is no later one."""
    points = [(value, int(iteration)) for iteration, value in zip(*run.series(name), strict=True)]
    sign = metric(name).sign
    return max([each for each in points if each[1] > 0] or points, key=lambda each: sign * each[0], default=None)


def _listed(folder: Path) -> Listed:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    written = max(path.stat().st_mtime for name in (CONFIG, METRICS) if (path := folder / name).is_file())
    age = max(0.0, time.time() - written)
    holder = _holder(folder / LOCK)
    config: Config | None = None
    with suppress(ConfigError):  # missing, or of another version
        config = load_config(folder / CONFIG)
    metrics = folder / METRICS
    try:
        run = load_run(folder) if metrics.is_file() and metrics.stat().st_size else None
    except UserError:
        return Listed(folder.name, holder or "damaged", None, None, None, None, None, size, age)
    iteration = None if run is None else int(run.rows[-1]["iteration"] or 0)
    iterations, name = (None, None) if config is None else (config.run.iterations, config.best_metric)
    value, place = (best_of(run, name) if run is not None and name is not None else None) or (None, None)
    state = holder or _state(folder, iteration, iterations)
    return Listed(folder.name, state, iteration, iterations, name, value, place, size, age)


def _state(folder: Path, iteration: int | None, iterations: int | None) -> str:
    """Return the state of a run without a process; a run exports its models when it finishes or is stopped."""
    if (folder / TRIALS).is_dir():
        return "sweep"
    if not (folder / "generator" / "config.json").is_file():
        return "failed"
    return "stopped" if iteration is not None and iterations is not None and iteration < iterations else "finished"


def _holder(lock: Path) -> str | None:
    """Return "running" if the process in the lock file is alive; one on another machine is assumed to be alive."""
    if not lock.is_file():
        return None
    found = HOLDING.fullmatch(lock.read_text(encoding="utf-8", errors="replace").strip())
    if found is None:
        return None
    if found[2] != socket.gethostname():
        return f"running on {found[2]}"
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return None  # it was killed
    except PermissionError:
        pass  # the process of another user
    return "running"
