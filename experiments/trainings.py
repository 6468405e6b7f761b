"""Train runs of ``rlgaf_ray.main`` for an experiment, several at a time, each in its own process.

A run that is complete under the root is loaded, an interrupted one is resumed. Concurrent runs share the cores evenly;
with as many runs as cores, each actor has one thread.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rlgaf_ray.config.reader import read_yaml
from rlgaf_ray.report.runs import Run, load_run

OLD_DEFAULT = [str(Path(__file__).parents[1] / "configs" / "ablations" / "old_default.yaml"), "warmup.sft.steps=0"]
"""The former default, which the documented figures were measured with."""


@dataclass(frozen=True)
class Training:
    name: str  # the name of its folder
    words: Sequence[str]  # config, flags and overrides


def trained(trainings: Sequence[Training], root: Path, *, jobs: int = 1) -> Iterator[Run]:
    """Train the runs, ``jobs`` at a time, and yield them in order; their output is in ``NAME.log``."""
    root = root.absolute()
    root.mkdir(parents=True, exist_ok=True)
    threads = [] if jobs == 1 else [f"cluster.threads={max(1, (os.cpu_count() or 1) // jobs)}"]
    pool = ThreadPoolExecutor(jobs)
    try:
        yield from pool.map(lambda training: _train(training, root, threads), trainings)
    finally:  # on Ctrl-C the running ones have ended, the others are not started
        pool.shutdown(cancel_futures=True)


def _train(training: Training, root: Path, threads: list[str]) -> Run:
    folder = root / training.name
    if not _complete(folder):
        places = [f"run.name={training.name}", f"run.root={root}"]
        resumable = (folder / "checkpoints" / "latest").is_file()
        if folder.exists() and not resumable:
            raise SystemExit(f"{folder} holds a run that was interrupted before its first checkpoint: remove it")
        words = ["--resume", *places] if resumable else [*training.words, *threads, *places]
        environment = os.environ | ({"OMP_NUM_THREADS": threads[0].rpartition("=")[2]} if threads else {})
        log = folder.with_suffix(".log")
        with log.open("a") as output:
            command = [sys.executable, "-m", "rlgaf_ray.main", "train", *words]
            done = subprocess.run(command, stdout=output, stderr=output, env=environment)
        if done.returncode:
            raise SystemExit(f"{training.name} ended with code {done.returncode}: {log.read_text()[-2000:]}")
    return load_run(folder)


def last(run: Run, name: str) -> float:
    """Return the newest value of a metric; exits if the run has none."""
    value = run.last(name)
    if value is None:
        raise SystemExit(f"{run.folder} has no {name}")
    return value


def _complete(folder: Path) -> bool:
    """Whether a run has exported its models after its last iteration; a stopped run exports them as well."""
    if not (folder / "generator").is_dir():
        return False
    run = load_run(folder)
    return run.last("iteration") == read_yaml(run.config)["run"]["iterations"]
