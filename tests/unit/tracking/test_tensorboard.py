from __future__ import annotations

import errno
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlgaf_ray.tracking.base import TrackedRun, Trackers
from rlgaf_ray.tracking.files import Record
from rlgaf_ray.tracking.tensorboard import TensorBoardTracker


def events(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return found


def values(folder: Path) -> dict[int, list[float]]:
    """Return the values of the metric loss, by step."""
    found: dict[int, list[float]] = {}
    for event in events(folder).Scalars("loss"):
        found.setdefault(event.step, []).append(event.value)
    return found


def test_restarts_and_rollbacks_leave_one_value_per_step(tmp_path: Path) -> None:
    for value in (1.0, 2.0):  # the second run starts from scratch
        with Trackers(Record(tmp_path), {"tensorboard": TensorBoardTracker()}) as trackers:
            for iteration in range(4):
                trackers.log(iteration, {"loss": value})
    assert values(tmp_path) == {iteration: [2.0] for iteration in range(4)}
    with Trackers(Record(tmp_path), {"tensorboard": TensorBoardTracker()}, start=2) as trackers:
        trackers.log(3, {"loss": 3.0})
        trackers.rewind(1)
        for iteration in (2, 3):
            trackers.log(iteration, {"loss": 4.0})
    assert values(tmp_path) == {0: [2.0], 1: [2.0], 2: [4.0], 3: [4.0]}


def test_a_table_is_logged_as_markdown(tmp_path: Path) -> None:
    with Trackers(Record(tmp_path), {"tensorboard": TensorBoardTracker()}) as trackers:
        trackers.log_table(3, "rollouts", [{"response": "a | b\nc", "score": 0.5}])
    (event,) = events(tmp_path).Tensors("rollouts/text_summary")
    assert event.step == 3
    shown = event.tensor_proto.string_val[0].decode()
    assert shown == "| response | score |\n| --- | --- |\n| a \\| b c | 0.5 |"


def test_a_failed_write_in_tensorboards_thread_is_raised(tmp_path: Path, capsys) -> None:
    found = TensorBoardTracker()
    found.start(TrackedRun("run", tmp_path, {}))
    event_writer: Any = found.writer.file_writer.event_writer  # type: ignore[attr-defined]  # set by its first value
    event_writer._async_writer._writer._writer = Full()
    with pytest.raises(OSError, match="No space left on device"):
        for iteration in range(1000):
            found.log(iteration, {"loss": 0.0})
            time.sleep(0.01)
    with pytest.raises(OSError, match="No space left on device"):
        found.close()
    assert capsys.readouterr().err == ""


class Full:
    def write(self, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")
