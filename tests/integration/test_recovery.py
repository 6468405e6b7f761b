"""Actors that are lost in the middle of a run, for real: the run goes on, and ends as if nothing had happened."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

LOST = {"rollout/workers_replaced", "rollout/prompts_repeated"}


SHARED = ["rollout.engine=transformers", "rollout.num_workers=2", "learner.precision=float32", "evaluation.every=0"]


def test_both_workers_and_the_learner_are_killed(small_under, rows_of, tmp_path: Path) -> None:
    settings = [*SHARED, "run.iterations=30", "checkpoint.every=3"]
    run = Run(small_under(tmp_path, "run.name=hurt", *settings), tmp_path / "hurt")
    run.wait(lambda: len(run.rows()) > 4, "the first iterations")
    for process in run.actors("RolloutWorker"):  # all at once
        process.send_signal(signal.SIGKILL)
    run.wait(lambda: run.replaced() == 2, "both workers to be replaced")
    run.actors("LearnerWorker")[0].send_signal(signal.SIGKILL)
    output = run.ended(0)
    assert "rollout worker 0 died" in output and "rollout worker 1 died" in output
    assert "the learner died" in output and "the run goes back to iteration" in output, output

    whole = Run(small_under(tmp_path, "run.name=whole", *settings), tmp_path / "whole")
    whole.ended(0)
    hurt, unhurt = rows_of(run.folder), rows_of(whole.folder)
    assert [without_losses(row) for row in hurt] == [without_losses(row) for row in unhurt]
    for name in ("generator", "discriminator"):
        one, other = (load_file(folder / name / "model.safetensors") for folder in (run.folder, whole.folder))
        assert all(bool((one[key] == other[key]).all()) for key in one | other), name


@pytest.mark.slow
def test_a_worker_that_falls_silent_is_replaced(small_under, tmp_path: Path) -> None:
    settings = [*SHARED, "run.iterations=2000", "cluster.timeout_seconds=40"]
    run = Run(small_under(tmp_path, "run.name=hurt", *settings), tmp_path / "hurt")
    run.wait(lambda: len(run.rows()) > 4, "the first iterations")
    (stopped, _) = run.actors("RolloutWorker")
    stopped.send_signal(signal.SIGSTOP)
    run.wait(lambda: run.replaced() == 1, "the silent worker to be replaced")
    assert not stopped.is_running() or stopped.status() == psutil.STATUS_ZOMBIE
    run.process.send_signal(signal.SIGINT)
    assert "did not answer generate within 40 s" in run.ended(130)


def test_one_loss_too_many_ends_the_run_and_keeps_its_checkpoint(small_under, tmp_path: Path) -> None:
    settings = ["rollout.engine=transformers", "run.iterations=2000", "evaluation.every=0", "checkpoint.every=2"]
    run = Run(small_under(tmp_path, "run.name=hurt", *settings, "cluster.max_recoveries=0"), tmp_path / "hurt")
    run.wait(lambda: len(run.rows()) > 4, "the first iterations")
    run.actors("RolloutWorker")[0].send_signal(signal.SIGKILL)
    output = run.ended(1)
    (error,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "rollout worker" in error and "(cluster.max_recoveries)" in error
    assert (run.folder / "checkpoints" / "latest").read_text().startswith("step_")
    assert not run.descendants()


class Run:
    """The program in a process of its own, and the processes of its actors."""

    def __init__(self, arguments: list[str], folder: Path) -> None:
        command = [sys.executable, "-m", "rlgaf_ray.main", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.folder = folder

    def ended(self, code: int) -> str:
        """What it has printed, once it has ended with this exit code."""
        output, _ = self.process.communicate(timeout=200)
        assert self.process.returncode == code, output
        return output

    def rows(self) -> list[dict[str, float]]:
        metrics = self.folder / "metrics.jsonl"
        lines = metrics.read_text().splitlines(keepends=True) if metrics.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def replaced(self) -> float:
        return sum(row.get("rollout/workers_replaced", 0.0) for row in self.rows())

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True) if psutil.pid_exists(self.process.pid) else []

    def actors(self, name: str) -> list[psutil.Process]:
        found = [process for process in self.descendants() if f"ray::{name}" in "".join(process.cmdline()[:1])]
        assert found, f"no process of {name}"
        return found

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = 120.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None:
                raise AssertionError(self.process.communicate()[0])
            assert time.monotonic() < deadline, f"no sign of {what} within {seconds:g} s"
            time.sleep(0.01)


def without_losses(row: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name not in LOST}
