"""SIGTERM, which schedulers send some seconds before they kill a process."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.chaos.program import SMALL, count_missing, reached

GRACE_SECONDS = 30.0  # Kubernetes' default


@pytest.mark.slow
def test_sigterm_saves_a_checkpoint_and_ends_the_run(start, small_under, record, tmp_path: Path) -> None:
    words = small_under(tmp_path, "run.name=stopped", *SMALL, "run.iterations=2000", "checkpoint.every=1000")
    run = start(words, tmp_path / "stopped")
    run.reaches(3)
    moment = run.hit_group(signal.SIGTERM)
    detected = run.prints("stopped after iteration") - moment
    output = run.ended(143)
    assert detected < GRACE_SECONDS
    last = int(reached(run.folder))
    again = f"--resume run.root={tmp_path} run.name=stopped"
    assert f"stopped after iteration {last}, before its first evaluation; continue with {again}" in output
    assert (run.folder / "checkpoints/latest").read_text() == f"step_{last:06d}\n"
    assert "Traceback" not in output
    record(
        "process group: SIGTERM (detected: until its checkpoint is written)",
        detected=[detected],
        missing=count_missing(run.folder),
    )


def test_sigterm_during_startup_ends_the_run(start, small_under, record, tmp_path: Path) -> None:
    run = start(small_under(tmp_path, "run.name=stopped", *SMALL), tmp_path / "stopped")
    run.wait(lambda: bool(run.processes("LearnerWorker")), "learner")
    moment = run.hit([run.main], signal.SIGTERM)
    run.process.wait()
    detected = time.monotonic() - moment
    assert detected < GRACE_SECONDS
    output = run.ended(143)
    assert "stopped by SIGTERM before training started" in output
    assert "Traceback" not in output and reached(run.folder) < 1
    record("program: SIGTERM while it starts (detected: until it has ended)", detected=[detected])
