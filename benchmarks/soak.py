"""A long run of the real program, with rollout workers killed at random: does anything grow?

    python benchmarks/soak.py [--iterations 1000] [--engine transformers|vllm] [--seed 0] [--csv FILE] [KEY=VALUE ...]

About every hundred iterations a random rollout worker gets a SIGKILL. Every five iterations each process of the run
(the program, its actors, Ray's own) is measured: private memory, which is its proportional set size without the object
store; open files; and how many processes of each kind there are. Judged are processes that live for 200 iterations,
the first 100 of each left out (fewer in a run of less than 500, which is a try and shows no more than that it works).
Bars: a least-squares slope of at most 1 MB of private memory in 100 iterations for every process, and no more open
files or processes of a kind at the end than at first. Exit code 1 where one is missed. Ray's log monitor alone may gain
files: it keeps two logs of each ended worker open, until it has 200 (RAY_LOG_MONITOR_MAX_OPEN_FILES).
"""

from __future__ import annotations

import argparse
import csv
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
from common import private_bytes
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

SIZES = [
    "task.response_tokens=12",
    "task.imdb.splits={base: 400, demonstrations: 200, judge_validation: 300, judge_test: 300, validation: 120, "
    "test: 120}",
    "model.generator=tiny-gpt2",
    "warmup.generator.steps=20",
    "warmup.generator.batch_size=8",
    "warmup.sft.steps=2",
    "warmup.discriminator.steps=2",
    "rollout.num_workers=2",
    "rollout.batch_size=16",
    "discriminator.batch_size=16",
    "evaluation.num_prompts=40",
    "evaluation.num_samples=2",
    "evaluation.every=100",
    "checkpoint.every=50",
    "checkpoint.keep=2",
    "guard.non_finite=warn",
    "cluster.max_recoveries=1000",
]
SAMPLE_EVERY, KILL_EVERY, WARMING = 5, 100, 100  # iterations
MEGABYTE, SLOPE_BAR = 1e6, 1.0  # MB in 100 iterations
LOG_MONITOR, LOGS_OF_A_WORKER = "log_monitor", 2
SPARE_FILES = 4  # open at one moment and not at another: a checkpoint, a socket that is being closed


@dataclass
class Series:
    """What one process was seen to hold; its first ``warming`` iterations do not count."""

    kind: str
    warming: int
    iterations: list[int] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)  # bytes
    files: list[int] = field(default_factory=list)

    def settled(self) -> slice:
        return slice(int(np.searchsorted(self.iterations, self.iterations[0] + self.warming)), None)

    @property
    def judged(self) -> bool:
        return self.iterations[-1] - self.iterations[0] >= 2 * self.warming

    def slope(self) -> float:
        """MB in 100 iterations."""
        kept = self.settled()
        return float(np.polyfit(self.iterations[kept], self.memory[kept], 1)[0]) * 100 / MEGABYTE

    def files_gained(self) -> int:
        """The median of the last quarter less that of the first, so that one moment's sockets do not count."""
        kept = self.files[self.settled()]
        part = max(1, len(kept) // 4)
        return round(statistics.median(kept[-part:]) - statistics.median(kept[:part]))


def kind_of(process: psutil.Process, program: int) -> str:
    """The name of an actor's class, or of Ray's part; an actor is called after what it is doing."""
    if process.pid == program:
        return "driver"
    words = process.cmdline()
    if not words:
        return process.name()
    if words[0].startswith("ray::"):
        return words[0].removeprefix("ray::").split(".")[0].split("(")[0]
    script = next((word for word in words[1:3] if word.endswith(".py")), words[0])
    return Path(script).stem.removeprefix("default_")


class Monitor:
    """Measures all processes of a program, and kills some."""

    def __init__(self, program: int, *, warming: int, seed: int) -> None:
        self.program = psutil.Process(program)
        self.warming = warming
        self.draw = random.Random(seed)
        self.series: dict[int, Series] = {}
        self.counts: dict[str, list[int]] = defaultdict(list)  # of each kind, processes at each sample
        self.at: list[int] = []
        self.kills: list[int] = []

    def sample(self, iteration: int) -> None:
        seen: dict[str, int] = defaultdict(int)
        for process in [self.program, *self.program.children(recursive=True)]:
            try:
                kind = kind_of(process, self.program.pid)
                memory, files = private_bytes(process.pid), process.num_fds()
            except (psutil.Error, OSError, KeyError):  # it has just ended
                continue
            seen[kind] += 1
            series = self.series.setdefault(process.pid, Series(kind, self.warming))
            series.kind = kind
            series.iterations.append(iteration)
            series.memory.append(memory)
            series.files.append(files)
        for kind in seen.keys() | self.counts.keys():
            self.counts[kind] += [0] * (len(self.at) - len(self.counts[kind])) + [seen[kind]]
        self.at.append(iteration)

    def until_next_kill(self) -> int:
        return self.draw.randrange(KILL_EVERY // 2, KILL_EVERY * 3 // 2)

    def kill(self, iteration: int) -> None:
        workers = [
            child for child in self.program.children(recursive=True) if kind_of(child, 0).startswith("RolloutWorker")
        ]
        if workers:
            self.draw.choice(workers).send_signal(signal.SIGKILL)
            self.kills.append(iteration)

    def processes_gained(self) -> dict[str, int]:
        first = int(np.searchsorted(self.at, self.warming))
        part = max(1, (len(self.at) - first) // 4)
        return {
            kind: round(statistics.median(counts[-part:]) - statistics.median(counts[first : first + part]))
            for kind, counts in self.counts.items()
            if len(counts) > first
        }


def iterations_of(metrics: Path) -> int:
    """How many iterations a run has logged."""
    return max(0, metrics.read_bytes().count(b"\n") - 1) if metrics.is_file() else 0  # row 0 is an evaluation


def iterations(program: subprocess.Popen, metrics: Path) -> Iterator[int]:
    """Every new number of iterations, until the program ends."""
    last = 0
    while program.poll() is None:
        now = iterations_of(metrics)
        if now > last:
            yield now
        last = now
        time.sleep(0.05)


def watch(program: subprocess.Popen, metrics: Path, *, total: int, warming: int, seed: int) -> Monitor:
    monitor = Monitor(program.pid, warming=warming, seed=seed)
    next_sample, next_kill = 1, monitor.until_next_kill()
    with Progress() as progress:
        shown = progress.add_task("iterations", total=total)
        for iteration in iterations(program, metrics):
            progress.update(shown, completed=iteration)
            if iteration >= next_sample:
                try:
                    monitor.sample(iteration)
                except psutil.NoSuchProcess:
                    break
                next_sample = iteration + SAMPLE_EVERY
            if iteration >= next_kill:
                monitor.kill(iteration)
                next_kill = iteration + monitor.until_next_kill()
    return monitor


def report(monitor: Monitor, console: Console) -> bool:
    """Prints what every process that lived long enough did; true where all bars are met."""
    table = Table(title=f"{len(monitor.kills)} workers killed; bars: {SLOPE_BAR:g} MB in 100 iterations, no more files")
    for column in ("process", "iterations", "MB, first", "MB, last", "MB / 100 iterations", "files gained"):
        table.add_column(column, justify="left" if column == "process" else "right", no_wrap=column == "process")
    met = True
    for pid, series in sorted(monitor.series.items(), key=lambda item: item[1].kind):
        if not series.judged:
            continue
        slope, files = series.slope(), series.files_gained()
        logs = LOGS_OF_A_WORKER * len(monitor.kills) if series.kind == LOG_MONITOR else 0
        met &= slope <= SLOPE_BAR and files <= SPARE_FILES + logs
        memory = series.memory[series.settled()]
        table.add_row(
            f"{series.kind} ({pid})",
            f"{series.iterations[0]} to {series.iterations[-1]}",
            f"{memory[0] / MEGABYTE:,.1f}",
            f"{memory[-1] / MEGABYTE:,.1f}",
            f"{slope:+.2f}",
            f"{files:+d}",
        )
    console.print(table)
    gained = {kind: count for kind, count in monitor.processes_gained().items() if count}
    console.print(f"processes gained or lost: {gained or 'none'}")
    return met and not any(count > 0 for count in gained.values())


def write_csv(monitor: Monitor, path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["process", "pid", "iteration", "bytes", "files"])
        for pid, series in monitor.series.items():
            for row in zip(series.iterations, series.memory, series.files, strict=True):
                writer.writerow([series.kind, pid, *row])


def main() -> int:
    parser = argparse.ArgumentParser(description="Does anything grow in a long run with kills?")
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--engine", choices=["transformers", "vllm"], default="transformers")
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    parser.add_argument("--csv", type=Path, help="write every sample here")
    parser.add_argument("overrides", nargs="*", help="of the run's config")
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        root = Path(folder)
        words = [f"run.root={root}", "run.name=soak", f"run.iterations={arguments.iterations}"]
        words += [f"rollout.engine={arguments.engine}", *SIZES, *arguments.overrides]
        with (root / "log").open("w") as log:
            program = subprocess.Popen([sys.executable, "-m", "rlgaf_ray.main", *words], stdout=log, stderr=log)
        try:
            warming = min(WARMING, arguments.iterations // 5)
            metrics = root / "soak" / "metrics.jsonl"
            monitor = watch(program, metrics, total=arguments.iterations, warming=warming, seed=arguments.seed)
            code = program.wait()
        finally:
            if program.poll() is None:
                program.send_signal(signal.SIGTERM)
                program.wait()
        logged = iterations_of(metrics)
        print(f"exit code {code} after {logged} iterations; workers killed at {monitor.kills}")
        if code:
            print((root / "log").read_text()[-3000:])
    if arguments.csv is not None:
        write_csv(monitor, arguments.csv)
    met = report(monitor, Console())
    return 0 if met and code == 0 and logged == arguments.iterations else 1


if __name__ == "__main__":
    sys.exit(main())
