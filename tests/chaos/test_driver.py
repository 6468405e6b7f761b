"""The driver, killed at random moments of one run and resumed each time."""

from __future__ import annotations

import hashlib
import random
import time
from pathlib import Path

import pytest

from rlgaf_ray.loop.checkpoint import Checkpoints
from tests.chaos.program import SMALL, Run, count_missing, reached

KILLS, EVERY = 20, 3
IN_STARTUP = (2, 7, 12, 17)  # kills that do not wait for an iteration
STATE = ("*.safetensors", "optimizer.json", "algorithm.json", "state.json")
MOST_ITERATIONS = 5  # between a start and the kill


@pytest.mark.timeout(3600)
def test_twenty_kills_do_not_change_the_result(start, small_under, rows_of, record, tmp_path: Path) -> None:
    settings = [*SMALL, "run.iterations=120", f"checkpoint.every={EVERY}"]
    words = small_under(tmp_path, "run.name=hurt", *settings)
    folder = tmp_path / "hurt"
    moments = random.Random(5)
    runs: list[Run] = []
    gone: list[float] = []
    recovered: list[float] = []
    repeated, killed = 0, 0.0
    for kill in range(KILLS):
        before = reached(folder)
        run = start([*words, *(["--resume"] if kill else [])], folder)
        if kill:  # processes of the killed run end while the next one starts
            runs[-1].gone("Worker")  # its actors; Ray's agents live longer
            gone.append(time.monotonic() - killed)
        if kill in IN_STARTUP:
            time.sleep(moments.uniform(0.0, 10.0))
        else:
            first = run.wait(lambda before=before: reached(folder) > before, "new iteration")
            if kill:
                recovered.append(first - killed)
            # the first kill waits for a checkpoint
            run.reaches(int(before) + moments.randint(1, MOST_ITERATIONS) + (0 if kill else EVERY))
            time.sleep(moments.uniform(0.0, 0.5))
        assert run.process.poll() is None, f"the run has ended before kill {kill + 1}:\n{run.output}"
        killed = run.hit([run.main])
        runs.append(run)
        repeated += check_checkpoints(folder)

    last = start([*words, "--resume"], folder)
    runs[-1].gone("Worker")
    gone.append(time.monotonic() - killed)
    last.ended(0)
    start(small_under(tmp_path, "run.name=reference", *settings), tmp_path / "reference").ended(0)
    for run in runs:
        run.gone()
    name = "driver: SIGKILL (detected: until its last actor has ended)"
    record(name, times=KILLS, detected=gone, recovered=recovered, repeated=repeated, missing=count_missing(folder))
    assert rows_of(folder) == rows_of(tmp_path / "reference")
    assert weights_of(folder) == weights_of(tmp_path / "reference")


def check_checkpoints(folder: Path) -> int:
    """Check that every checkpoint is readable and the last one recent; returns the iterations to repeat."""
    checkpoints = Checkpoints(folder / "checkpoints", keep=2)
    states = [checkpoints.load_state(path) for path in checkpoints.all()]
    repeated = int(reached(folder)) - states[-1]["iteration"]
    assert 0 <= repeated <= EVERY
    return repeated


def weights_of(folder: Path) -> str:
    """Hash the newest checkpoint (weights, optimizers, random streams, loop state) and both exported models."""
    digest = hashlib.sha256()
    newest = folder / "checkpoints" / (folder / "checkpoints" / "latest").read_text().strip()
    for place in (newest, folder / "generator", folder / "discriminator"):
        files = sorted(file for pattern in STATE for file in place.rglob(pattern))
        assert files, f"no weights in {place}"
        for file in files:
            digest.update(file.relative_to(place).as_posix().encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()
