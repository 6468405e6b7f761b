"""The fan-out to trackers: order, history on resume and rollback, and trackers that fail or hang."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from rlgaf_ray.tracking import base
from rlgaf_ray.tracking.base import TrackedRun, Tracker, Trackers
from rlgaf_ray.tracking.files import Record
from rlgaf_ray.types import Metrics


class Kept(Tracker):
    """A service that cannot delete values: a list of calls, refilled at each start."""

    def start(self, run: TrackedRun) -> None:
        self.calls: list[tuple[Any, ...]] = [("start", run.last, run.rolled_back)]
        run.replay(self)

    def log(self, iteration: int, metrics: Metrics) -> None:
        self.calls.append((iteration, metrics))

    def log_table(self, iteration: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self.calls.append((iteration, name, rows))


class OnlyLogs(Tracker):
    def __init__(self) -> None:
        self.steps: list[int] = []

    def log(self, iteration: int, metrics: Metrics) -> None:
        self.steps.append(iteration)


class Broken(OnlyLogs):
    def log(self, iteration: int, metrics: Metrics) -> None:
        super().log(iteration, metrics)
        raise ConnectionError("nobody\nthere")


class Hanging(Tracker):
    def __init__(self) -> None:
        self.released = threading.Event()

    def log(self, iteration: int, metrics: Metrics) -> None:
        self.released.wait()


def test_a_tracker_has_every_value_once_after_resume_and_rollback(tmp_path: Path) -> None:
    rows = [{"response": "a", "score": 0.5}]
    first = Kept()
    with Trackers(Record(tmp_path), {"kept": first}) as trackers:
        for iteration in range(4):
            trackers.log_table(iteration, "rollouts", rows)
            trackers.log_table(iteration, "rollouts", rows)  # the same evaluation again
            trackers.log(iteration, {"loss": math.inf if iteration == 1 else float(iteration)})
    before = [(1, "rollouts", rows), (1, {"loss": math.inf})]
    assert first.calls[:5] == [("start", -1, False), (0, "rollouts", rows), (0, {"loss": 0.0}), *before]
    assert len(first.calls) == 9

    second = Kept()
    with Trackers(Record(tmp_path), {"kept": second}, start=2) as trackers:
        trackers.log(3, {"loss": 30.0})
    assert second.calls[0] == ("start", 2, False)
    with Trackers(Record(tmp_path), {"kept": second}, start=2) as trackers:
        trackers.log(3, {"loss": 30.0})
        trackers.rewind(0)
        trackers.log_table(1, "rollouts", rows)
        trackers.log(1, {"loss": 10.0})
    assert second.calls == [
        ("start", 0, True),
        (0, "rollouts", rows),
        (0, {"loss": 0.0}),
        (1, "rollouts", rows),
        (1, {"loss": 10.0}),
    ]


def test_null_values_are_replayed_as_nan(tmp_path: Path) -> None:
    record = Record(tmp_path)
    record.log(0, {"loss": math.inf})
    kept = Kept()
    with Trackers(record, {"kept": kept}, start=1):
        pass
    assert math.isnan(kept.calls[1][1]["loss"])


def test_a_failing_tracker_is_reported_once_and_disabled(tmp_path: Path) -> None:
    messages: list[str] = []
    broken, other = Broken(), OnlyLogs()
    with Trackers(Record(tmp_path), {"broken": broken, "other": other}, report=messages.append) as trackers:
        for iteration in range(3):
            trackers.log(iteration, {"loss": 0.0})
        trackers.rewind(1)
        trackers.log(2, {"loss": 1.0})
    assert messages == [
        "tracker broken failed and is disabled until the run is resumed (ConnectionError: nobody there); "
        "metrics.jsonl has all values"
    ]
    assert broken.steps == [0]
    assert other.steps == [0, 1, 2, 2]
    assert [row["loss"] for row in Record(tmp_path).rows()] == [0.0, 0.0, 1.0]


def test_a_hanging_tracker_delays_only_close(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(base, "CLOSE_SECONDS", 0.2)
    messages: list[str] = []
    hanging, other = Hanging(), OnlyLogs()
    trackers = Trackers(Record(tmp_path), {"hanging": hanging, "other": other}, report=messages.append)
    began = time.monotonic()
    for iteration in range(50):
        trackers.log(iteration, {"loss": 0.0})
    assert not hanging.released.is_set() and messages == []
    trackers.close()
    assert time.monotonic() - began < 20
    hanging.released.set()
    assert "tracker hanging failed" in messages[0] and "no answer within 0.2 s" in messages[0]
    assert len(Record(tmp_path).rows()) == 50


@pytest.mark.parametrize("name", ["start", "log", "log_table", "close"])
def test_every_tracker_method_has_a_default(name: str, tmp_path: Path) -> None:
    arguments: dict[str, list[Any]] = {
        "start": [TrackedRun("run", tmp_path, {})],
        "log": [0, {}],
        "log_table": [0, "rollouts", []],
    }
    assert getattr(type("Silent", (Tracker,), {})(), name)(*arguments.get(name, [])) is None
