"""A full disk, and a storage that does not respond."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.chaos.program import SMALL, Run, count_missing, reached
from tests.moto_server import KEY, SECRET, moto_server, needs_moto

MEGABYTES = 256
AWAY_SECONDS = 60.0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        pytest.skip(f"nothing can be mounted here: {error}")
    if done.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, *, leave: int) -> Path:
    """Write a file that fills the disk except for ``leave`` bytes."""
    ballast = disk / "ballast"
    space = os.statvfs(disk)
    with suppress(OSError):  # the run may have used the space meanwhile
        ballast.write_bytes(bytes(space.f_bavail * space.f_frsize - leave))
    return ballast


@pytest.mark.parametrize("what", ["rollouts", "checkpoint"])
def test_a_full_disk_ends_the_run_with_one_line_and_it_resumes(
    start, small_under, record, small_disk: Path, what: str
) -> None:
    every = 2 if what == "checkpoint" else 4
    words = small_under(small_disk, "run.name=hurt", *SMALL, f"checkpoint.every={every}", "checkpoint.keep=1")
    folder = small_disk / "hurt"
    run: Run = start([*words, "run.iterations=2000"], folder)
    latest = folder / "checkpoints/latest"
    run.wait(latest.is_file, "checkpoint")
    run.hit([run.main], signal.SIGSTOP)  # no checkpoint may be written or deleted while the disk is filled
    saved = sum(file.stat().st_size for file in (folder / "checkpoints").rglob("*") if file.is_file())
    moment = time.monotonic()
    ballast = fill(small_disk, leave=saved // 8 if what == "checkpoint" else 0)
    run.hit([run.main], signal.SIGCONT)
    output = run.ended(1)
    (error,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "could not be written" in error and "No space left on device" in error
    assert str(folder) in error and f"--resume run.root={small_disk} run.name=hurt" in error
    assert f"the last checkpoint, {latest.read_text().strip()}, is intact" in error
    assert "Traceback" not in output
    detected = next(when for when, line in run.lines if line == error) - moment
    repeated = int(reached(folder)) - int(latest.read_text().strip().removeprefix("step_"))

    ballast.unlink()
    begin = time.monotonic()
    again = start([*words, f"run.iterations={int(reached(folder)) + 3}", "--resume"], folder)
    before = reached(folder)
    recovered = again.wait(lambda: reached(folder) > before, "new iteration") - begin
    again.ended(0)
    name = f"disk full when {'a checkpoint is' if what == 'checkpoint' else 'rollouts are'} written"
    record(name, detected=[detected], recovered=[recovered], repeated=repeated, missing=count_missing(folder))


def test_a_full_disk_during_the_warmups_ends_the_run_with_one_line(
    start, small_under, record, small_disk: Path, tmp_path: Path
) -> None:
    fill(small_disk, leave=2**24)  # enough for the tokenized reviews, but not for the generator
    words = small_under(tmp_path, "run.name=none", *SMALL, f"warmup.cache={small_disk}")
    output = start(words, tmp_path / "none").ended(1)
    (error,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert f"error: {small_disk}/warmups/generator-" in error and "No space left on device" in error
    assert error.endswith(": fix the storage and start the run again") and "Traceback" not in output
    assert not (tmp_path / "none").exists()
    record("disk full when a warm-up is written")


@needs_moto
def test_a_run_survives_an_unresponsive_storage(start, small_under, record, tmp_path: Path) -> None:
    with moto_server(tmp_path / "server.log") as (server, options):
        root = f"s3://{KEY}:{SECRET}@bucket/runs?{options}&allow_bucket_creation=true"
        words = [*small_under(tmp_path, "run.name=hurt", *SMALL), f"run.root={root}", "checkpoint.every=2"]
        on_the_way = tmp_path / "on_the_way"
        local = {"XDG_CACHE_HOME": str(on_the_way), "http_proxy": "", "https_proxy": ""}
        run = start([*words, "run.iterations=2000"], tmp_path, **local)
        run.wait(lambda: any(on_the_way.rglob("metrics.jsonl")), "run folder")
        run.folder = next(on_the_way.rglob("metrics.jsonl")).parent
        run.reaches(3)  # a checkpoint is stored
        server.send_signal(signal.SIGSTOP)
        time.sleep(AWAY_SECONDS)
        before, moment = reached(run.folder), time.monotonic()
        server.send_signal(signal.SIGCONT)
        run.reaches(int(before) + 3)  # past the next checkpoint
        recovered = time.monotonic() - moment
        missing = count_missing(run.folder)
        run.hit([run.main], signal.SIGINT)
        run.ended(130)
        name = f"storage: SIGSTOP of its server for {AWAY_SECONDS:g} s (recovered: since it answers)"
        record(name, recovered=[recovered], missing=missing)
