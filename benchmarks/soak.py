"""Soak test: a long run with rollout workers killed at random, checked for leaks of memory, files and processes.

    python benchmarks/soak.py [--iterations 1000] [--engine transformers|vllm] [--seed 0] [--csv FILE] [KEY=VALUE ...]

About every 100 iterations a random rollout worker gets a SIGKILL. Every five iterations each process of the run (the
driver, its actors, Ray's processes) is measured: private memory, i.e. the proportional set size without the object
store; open files; and the number of processes of each type. Processes that live for at least 200 iterations are judged,
without their first 100 (fewer in runs below 500 iterations, which only show that the benchmark works). Bars: a
least-squares slope of at most 1 MB of private memory per 100 iterations for every process, and no more open files or
processes of a type at the end than at the start. The exit code is 1 if a bar is missed. Only Ray's log monitor may gain
files: it keeps two logs of each ended worker open, up to 200 files (RAY_LOG_MONITOR_MAX_OPEN_FILES).
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
MEGABYTE, SLOPE_BAR = 1e6, 1.0  # MB per 100 iterations
LOG_MONITOR, LOGS_PER_WORKER = "log_monitor", 2
SPARE_FILES = 4  # open only temporarily: a checkpoint, a closing socket


@dataclass
class Series:
    """The measurements of one process; its first ``warming`` iterations do not count."""

    process_type: str
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
        """Return the growth of private memory in MB per 100 iterations."""
        kept = self.settled()
        return float(np.polyfit(self.iterations[kept], self.memory[kept], 1)[0]) * 100 / MEGABYTE

    def files_gained(self) -> int:
        """Return the median of the last quarter minus that of the first, which ignores short-lived sockets."""
        kept = self.files[self.settled()]
        part = max(1, len(kept) // 4)
        return round(statistics.median(kept[-part:]) - statistics.median(kept[:part]))


def type_of(process: psutil.Process, program: int) -> str:
    """Return the name of an actor's class or of a component of Ray; Ray sets an actor's title to its current task."""
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
    """Measures all processes of a program and kills some of them."""

    def __init__(self, program: int, *, warming: int, seed: int) -> None:
        self.program = psutil.Process(program)
        self.warming = warming
        self.draw = random.Random(seed)
        self.series: dict[int, Series] = {}
        self.counts: dict[str, list[int]] = defaultdict(list)  # type -> number of processes at each sample
        self.at: list[int] = []
        self.kills: list[int] = []

    def sample(self, iteration: int) -> None:
        seen: dict[str, int] = defaultdict(int)
        for process in [self.program, *self.program.children(recursive=True)]:
            try:
                process_type = type_of(process, self.program.pid)
                memory, files = private_bytes(process.pid), process.num_fds()
            except (psutil.Error, OSError, KeyError):  # the process has just ended
                continue
            seen[process_type] += 1
            series = self.series.setdefault(process.pid, Series(process_type, self.warming))
            series.process_type = process_type
            series.iterations.append(iteration)
            series.memory.append(memory)
            series.files.append(files)
        for each in seen.keys() | self.counts.keys():
            self.counts[each] += [0] * (len(self.at) - len(self.counts[each])) + [seen[each]]
        self.at.append(iteration)

    def until_next_kill(self) -> int:
        return self.draw.randrange(KILL_EVERY // 2, KILL_EVERY * 3 // 2)

    def kill(self, iteration: int) -> None:
        workers = [
            child for child in self.program.children(recursive=True) if type_of(child, 0).startswith("RolloutWorker")
        ]
        if workers:
            self.draw.choice(workers).send_signal(signal.SIGKILL)
            self.kills.append(iteration)

    def processes_gained(self) -> dict[str, int]:
        first = int(np.searchsorted(self.at, self.warming))
        part = max(1, (len(self.at) - first) // 4)
        return {
            name: round(statistics.median(counts[-part:]) - statistics.median(counts[first : first + part]))
            for name, counts in self.counts.items()
            if len(counts) > first
        }


def iterations_of(metrics: Path) -> int:
    """Return the number of iterations that a run has logged."""
    return max(0, metrics.read_bytes().count(b"\n") - 1) if metrics.is_file() else 0  # row 0 is an evaluation


def iterations(program: subprocess.Popen, metrics: Path) -> Iterator[int]:
    """Yield the number of iterations whenever it grows, until the program ends."""
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
    """Print the growth of every process that lived long enough; returns whether all bars are met."""
    table = Table(title=f"{len(monitor.kills)} workers killed; bars: {SLOPE_BAR:g} MB per 100 iterations")
    for column in ("process", "iterations", "MB, first", "MB, last", "MB / 100 iterations", "files gained"):
        table.add_column(column, justify="left" if column == "process" else "right", no_wrap=column == "process")
    met = True
    for pid, series in sorted(monitor.series.items(), key=lambda item: item[1].process_type):
        if not series.judged:
            continue
        slope, files = series.slope(), series.files_gained()
        logs = LOGS_PER_WORKER * len(monitor.kills) if series.process_type == LOG_MONITOR else 0
        met &= slope <= SLOPE_BAR and files <= SPARE_FILES + logs
        memory = series.memory[series.settled()]
        table.add_row(
            f"{series.process_type} ({pid})",
            f"{series.iterations[0]} to {series.iterations[-1]}",
            f"{memory[0] / MEGABYTE:,.1f}",
            f"{memory[-1] / MEGABYTE:,.1f}",
            f"{slope:+.2f}",
            f"{files:+d}",
        )
    console.print(table)
    gained = {name: count for name, count in monitor.processes_gained().items() if count}
    console.print(f"processes gained or lost: {gained or 'none'}")
    return met and not any(count > 0 for count in gained.values())


def write_csv(monitor: Monitor, path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["process", "pid", "iteration", "bytes", "files"])
        for pid, series in monitor.series.items():
            for row in zip(series.iterations, series.memory, series.files, strict=True):
                writer.writerow([series.process_type, pid, *row])


def main() -> int:
    parser = argparse.ArgumentParser(description="Check a long run with killed workers for leaks.")
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--engine", choices=["transformers", "vllm"], default="transformers")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the kills")
    parser.add_argument("--csv", type=Path, help="write every sample to this file")
    parser.add_argument("overrides", nargs="*", help="overrides of the run's config")
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
