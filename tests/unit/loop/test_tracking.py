from __future__ import annotations

import errno
import json
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlgaf_ray.config.records import TrackingSection
from rlgaf_ray.data.storage import StorageError
from rlgaf_ray.loop.tracking import Tracker, quiet_writer


def tracker(folder: Path, *, start: int = 0) -> Tracker:
    return Tracker(folder, TrackingSection(tensorboard=False), None, start=start)  # type: ignore[arg-type]


def test_rows_after_the_iteration_that_is_resumed_from_are_cut_off_and_so_is_half_a_line(tmp_path: Path) -> None:
    first = tracker(tmp_path)
    for iteration in range(4):
        first.log(iteration, {"loss": float(iteration)})
    with first.metrics_path.open("a") as file:
        file.write('{"iteration": 4, "lo')
    tracker(tmp_path, start=2)
    assert [json.loads(line)["iteration"] for line in first.metrics_path.read_text().splitlines()] == [0, 1, 2]


def test_a_run_that_begins_again_has_its_events_once(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        found = Tracker(tmp_path, TrackingSection(), None)  # type: ignore[arg-type]
        for iteration in range(3):
            found.log(iteration, {"loss": value})
        found.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("loss")] == [2.0] * 3


def test_a_write_that_fails_in_tensorboards_thread_is_raised_and_not_printed(tmp_path: Path, capsys) -> None:
    with quiet_writer():
        found = Tracker(tmp_path, TrackingSection(), None)  # type: ignore[arg-type]
        assert found.writer is not None
        found.writer.file_writer.event_writer._async_writer._writer._writer = Full()
        with pytest.raises(StorageError, match="No space left on device"):
            for iteration in range(1000):
                found.log(iteration, {"loss": 0.0})
                time.sleep(0.01)
    assert capsys.readouterr().err == ""


class Full:
    def write(self, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    found = tracker(tmp_path)
    found.metrics_path = Path("/dev/full")
    with pytest.raises(StorageError, match="/dev/full could not be written: No space left on device"):
        found.log(1, {"loss": 0.0})
