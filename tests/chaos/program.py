"""Run the command line in a subprocess, send signals to its processes, and time its reactions."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import psutil
import pyarrow.parquet as pq

BATCH = 8  # rollouts per iteration
QUICK = [  # minimal training; one thread per process, because the processes share few cores
    "warmup.generator.steps=4",
    "warmup.sft.steps=2",
    "warmup.discriminator.steps=2",
    f"rollout.batch_size={BATCH}",
    f"discriminator.batch_size={BATCH}",
    "evaluation.num_prompts=10",
    "evaluation.every=0",
    "cluster.threads=1",
]
SMALL = [*QUICK, "rollout.engine=transformers", "learner.precision=float32"]
ALIKE = {"OMP_NUM_THREADS": "1"}
MARK = "RLGAF_CHAOS_RUN"  # environment variable of the program, inherited by all its processes
GONE_SECONDS = 300.0  # after which no process of a program may remain; Ray's agents retry a killed GCS for 60 s


class Run:
    """One invocation of the program.

    A thread reads the program's output and records the time of each line, in seconds of ``time.monotonic``.
    """

    def __init__(self, arguments: Sequence[str], folder: Path, **environment: str) -> None:
        self.folder = folder
        self.mark = uuid.uuid4().hex
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rlgaf_ray.main", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **ALIKE, MARK: self.mark, **environment},
            process_group=0,
        )
        self.started = time.monotonic()
        self.lines: list[tuple[float, str]] = []
        self.family: set[psutil.Process] = set()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line.rstrip("\n")))

    @property
    def output(self) -> str:
        return "\n".join(line for _, line in self.lines)

    def rows(self) -> list[dict[str, float]]:
        return complete_rows(self.folder)

    def replaced(self) -> float:
        return sum(row.get("rollout/workers_replaced", 0.0) for row in self.rows())

    def rollbacks(self) -> float:
        return sum(row.get("recovery/rollbacks", 0.0) for row in self.rows())

    @property
    def main(self) -> psutil.Process:
        return psutil.Process(self.process.pid)

    def descendants(self) -> list[psutil.Process]:
        try:
            found = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        self.family.update(found)
        return found

    def actors(self, name: str) -> list[psutil.Process]:
        found = self.processes(name)
        assert found, f"no process of {name}"
        return found

    def processes(self, name: str) -> list[psutil.Process]:
        return [process for process in self.descendants() if f"ray::{name}" in title(process)]

    def hit(self, processes: Iterable[psutil.Process], number: signal.Signals = signal.SIGKILL) -> float:
        """Send a signal to all these processes; returns the time."""
        self.descendants()
        moment = time.monotonic()
        for process in processes:
            process.send_signal(number)
        return moment

    def hit_group(self, number: signal.Signals) -> float:
        """Send a signal to the program's process group, as ``timeout`` and shells do; returns the time."""
        moment = self.hit([])
        os.killpg(self.process.pid, number)
        return moment

    def wait(self, condition: Callable[[], bool], what: str) -> float:
        """Wait until the condition holds; returns the time. Fails if the program ends before."""
        while not condition():
            if self.process.poll() is not None:
                self.reader.join()
                raise AssertionError(f"no {what}, and the program has ended:\n{self.output}")
            time.sleep(0.03)
        return time.monotonic()

    def reaches(self, iteration: int) -> None:
        """Wait until the run has completed this iteration."""
        self.wait(lambda: iteration <= reached(self.folder), f"iteration {iteration}")

    def prints(self, pattern: str, *, times: int = 1) -> float:
        """Wait for the ``times``-th output line that matches the pattern; returns its time."""

        def matches() -> list[float]:
            return [moment for moment, line in list(self.lines) if re.search(pattern, line)]

        self.wait(lambda: len(matches()) >= times, f"line with {pattern!r}")
        return matches()[times - 1]

    def repeated(self) -> int:
        """Return the number of iterations that the last rollback repeats.

        A rollback does not delete rollouts, so they show how far the run had come. Call it before the run is there
        again.
        """
        *_, back = re.findall(r"rolling back to iteration (\d+)", self.output)
        return max(int(path.stem) for path in (self.folder / "rollouts").iterdir()) - int(back)

    def ended(self, code: int) -> str:
        """Wait until the program has ended with this exit code and has no process left; returns its output."""
        while self.process.poll() is None:
            self.descendants()
            time.sleep(0.05)
        self.gone()
        assert self.process.returncode == code, self.output
        return self.output

    def gone(self, of: str = "") -> float:
        """Wait until no process of the program with ``of`` in its title remains; returns the seconds it took."""
        start = time.monotonic()
        self.process.wait(GONE_SECONDS)
        while alive := [process for process in self.remaining() if of in title(process)]:
            assert time.monotonic() - start < GONE_SECONDS, f"still running: {[title(process) for process in alive]}"
            time.sleep(0.05)
        self.reader.join(GONE_SECONDS)
        return time.monotonic() - start

    def remaining(self) -> list[psutil.Process]:
        """Return all running processes that the program started, including orphaned ones."""
        return [process for process in {*self.family, *self._marked()} if runs(process)]

    def _marked(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark:
                    found.append(process)
            except psutil.Error:  # it has ended or belongs to another user
                continue
        return found


def runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def complete_lines(folder: Path) -> list[str]:
    """Read the lines of metrics.jsonl, without a last one that is being written."""
    metrics = folder / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True) if metrics.is_file() else []
    return [line for line in lines if line.endswith("\n")]


def complete_rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in complete_lines(folder)]


def reached(folder: Path) -> float:
    """Return the last logged iteration; -1 if there is none."""
    lines = complete_lines(folder)  # called often, so only the last line is parsed
    return json.loads(lines[-1])["iteration"] if lines else -1


def count_missing(folder: Path) -> int:
    """Count missing rollouts: each iteration up to the last needs a row of metrics and a full batch in Parquet."""
    iterations = [int(row["iteration"]) for row in complete_rows(folder)]
    assert iterations == sorted(set(iterations)), "an iteration is logged twice"
    files = [folder / "rollouts" / f"{iteration:06d}.parquet" for iteration in iterations[1:]]
    written = sum(pq.read_metadata(file).num_rows for file in files if file.is_file())
    return BATCH * iterations[-1] - written
