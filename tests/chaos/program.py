"""The program in a process of its own, whose processes are hit, and what it makes of that, with the time of each."""

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

BATCH = 8  # rollouts of an iteration
QUICK = [  # what is trained does not matter; threads of several processes that wait for one another do not help
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
MARK = "RLGAF_CHAOS_RUN"  # in the environment of the program and of all that it starts
GONE_SECONDS = 300.0  # after which nothing may be left of a program: Ray's agents look for a killed GCS for 60 s


class Run:
    """One start of the program.

    A thread reads the program's output and notes when each line came. Moments are seconds of ``time.monotonic``.
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
        return whole_rows(self.folder)

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
        """Send all a signal; returns the moment."""
        self.descendants()
        moment = time.monotonic()
        for process in processes:
            process.send_signal(number)
        return moment

    def wait(self, condition: Callable[[], bool], what: str) -> float:
        """Until the condition holds; returns the moment. Fails where the program ends before."""
        while not condition():
            if self.process.poll() is not None:
                self.reader.join()
                raise AssertionError(f"no {what}, and the program has ended:\n{self.output}")
            time.sleep(0.03)
        return time.monotonic()

    def reaches(self, iteration: int) -> None:
        self.wait(lambda: iteration <= reached(self.folder), f"iteration {iteration}")

    def says(self, pattern: str, *, times: int = 1) -> float:
        """The moment at which a line that fits this came, for the ``times``-th time."""

        def said() -> list[float]:
            return [moment for moment, line in list(self.lines) if re.search(pattern, line)]

        self.wait(lambda: len(said()) >= times, f"line with {pattern!r}")
        return said()[times - 1]

    def repeated(self) -> int:
        """Iterations that are done again, from the last line that says where the run went back to.

        Rollouts are not cut back: they tell how far it had come. To be asked before it is there again.
        """
        *_, back = re.findall(r"goes back to iteration (\d+)", self.output)
        return max(int(path.stem) for path in (self.folder / "rollouts").iterdir()) - int(back)

    def ended(self, code: int) -> str:
        """What it has printed, once it has ended with this exit code and nothing is left of it."""
        while self.process.poll() is None:
            self.descendants()
            time.sleep(0.05)
        self.gone()
        assert self.process.returncode == code, self.output
        return self.output

    def gone(self, of: str = "") -> float:
        """Wait for the last process of the program to end whose title has this in it; returns how long that took."""
        start = time.monotonic()
        self.process.wait(GONE_SECONDS)
        while left := [process for process in self.left() if of in title(process)]:
            assert time.monotonic() - start < GONE_SECONDS, f"left behind: {[title(process) for process in left]}"
            time.sleep(0.05)
        self.reader.join(GONE_SECONDS)
        return time.monotonic() - start

    def left(self) -> list[psutil.Process]:
        """What it started and still runs, wherever in the tree of processes: also what has lost its parent."""
        return [process for process in {*self.family, *self._marked()} if runs(process)]

    def _marked(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark:
                    found.append(process)
            except psutil.Error:  # it has ended, or is another user's
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


def whole_lines(folder: Path) -> list[str]:
    """Of the metrics, but for one that is being written."""
    metrics = folder / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True) if metrics.is_file() else []
    return [line for line in lines if line.endswith("\n")]


def whole_rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in whole_lines(folder)]


def reached(folder: Path) -> float:
    lines = whole_lines(folder)  # asked for often: only the last one is read
    return json.loads(lines[-1])["iteration"] if lines else -1


def lost(folder: Path) -> int:
    """Rollouts that are missing: each iteration up to the last one must have a row, and a whole batch in Parquet."""
    iterations = [int(row["iteration"]) for row in whole_rows(folder)]
    assert iterations == sorted(set(iterations)), "an iteration is there twice"
    files = [folder / "rollouts" / f"{iteration:06d}.parquet" for iteration in iterations[1:]]
    there = sum(pq.read_metadata(file).num_rows for file in files if file.is_file())
    return BATCH * iterations[-1] - there
