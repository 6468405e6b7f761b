"""SIGTERM, as schedulers send it some seconds before they kill."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.chaos.program import SMALL, lost, reached

GRACE_SECONDS = 30.0  # Kubernetes' default


@pytest.mark.slow
def test_a_run_that_is_told_to_end_saves_and_ends(start, small_under, record, tmp_path: Path) -> None:
    words = small_under(tmp_path, "run.name=told", *SMALL, "run.iterations=2000", "checkpoint.every=1000")
    run = start(words, tmp_path / "told")
    run.reaches(3)
    moment = run.hit([run.main], signal.SIGTERM)
    said = run.says("stopped after iteration") - moment
    output = run.ended(143)
    assert said < GRACE_SECONDS
    last = int(reached(run.folder))
    assert f"stopped after iteration {last}; continue with --resume run.name=told" in output
    assert (run.folder / "checkpoints/latest").read_text() == f"step_{last:06d}\n"
    assert "Traceback" not in output
    record("program: SIGTERM (detected: until its checkpoint is written)", detected=[said], lost=lost(run.folder))


def test_a_run_that_is_told_to_end_while_it_starts_ends(start, small_under, record, tmp_path: Path) -> None:
    run = start(small_under(tmp_path, "run.name=told", *SMALL), tmp_path / "told")
    run.wait(lambda: bool(run.processes("LearnerWorker")), "learner")
    moment = run.hit([run.main], signal.SIGTERM)
    run.process.wait()
    detected = time.monotonic() - moment
    assert detected < GRACE_SECONDS
    output = run.ended(143)
    assert "Traceback" not in output and reached(run.folder) < 1
    record("program: SIGTERM while it starts (detected: until it has ended)", detected=[detected])
