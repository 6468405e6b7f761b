"""Restarts after failures of actors, with fakes of the loop and its roles: when a run goes on, and how it ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.exceptions import RayTaskError
from rich.console import Console

from rlgaf_ray.actors.answers import ActorFailure, ActorNotStarted, ActorsNotPlaced, ActorUnusable, UpstreamFailure
from rlgaf_ray.actors.recovery import Recoveries, TooManyFailures
from rlgaf_ray.config import load_config
from rlgaf_ray.loop.callback import Callback, Callbacks
from rlgaf_ray.loop.checkpoint import Checkpoints
from rlgaf_ray.report.console import Terminal
from rlgaf_ray.run import restarts
from rlgaf_ray.testing import RecordingCallback

DEAD = ActorFailure("the learner died during update")
OUT_OF_MEMORY = ActorUnusable("the learner ran out of memory during update")


def lost_gpu(failure: type[ActorFailure] = ActorUnusable) -> ActorFailure:
    """As ``Answers`` raises it for an error of CUDA, which may be a bug."""
    try:
        error = torch.AcceleratorError("CUDA error: device-side assert triggered")
        raise failure("the learner lost its GPU during update") from RayTaskError(
            "update", "the remote traceback", error, ip="127.0.0.1"
        ).as_instanceof_cause()
    except ActorFailure as raised:
        return raised


End = tuple[int, ActorFailure | TooManyFailures | None]  # the last iteration of a loop, and its failure, if any


class Failing:
    """A fake loop that ends with a given failure."""

    def __init__(self, reached: int, failure: Exception | None, rescued: list[int]) -> None:
        self.iteration, self.failure, self.rescued = reached, failure, rescued

    def run(self) -> str:
        if self.failure is not None:
            raise self.failure
        return "done"

    def rescue(self) -> None:
        self.rescued.append(self.iteration)


def outcomes(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    ends: Sequence[End],
    rescued: list[int],
    *more: Callback,
    overrides: Sequence[str] = (),
) -> list[int]:
    """Run loops that end as in ``ends`` until one succeeds; returns the iteration at which each ended.

    There is no checkpoint, so each loop starts from scratch. ``rescued`` receives the iteration of each rescue.
    """
    reached: list[int] = []

    @contextmanager
    def failing(*arguments: object, **options: object) -> Iterator[Failing]:
        at, failure = ends[len(reached)]
        reached.append(at)
        yield Failing(at, failure, rescued)

    monkeypatch.setattr(restarts, "open_loop", failing)
    prepared: Any = SimpleNamespace(config=load_config(None, ["cluster.max_recoveries=2", "run.name=a", *overrides]))
    roles: Any = SimpleNamespace(close=lambda: None)
    callbacks = Callbacks([Terminal(Console(quiet=True)), *more])
    checkpoints = Checkpoints(folder, keep=1)
    outcome: Any = restarts.run_with_recovery(prepared, lambda recoveries: roles, checkpoints, callbacks, None)
    assert outcome == "done"
    return reached


@pytest.mark.parametrize(
    "ends",
    [
        [(5, DEAD), (5, DEAD), (9, None)],
        [(5, OUT_OF_MEMORY), (7, OUT_OF_MEMORY), (9, None)],  # with progress in between
        [(5, OUT_OF_MEMORY), (5, DEAD), (9, None)],
        [(5, lost_gpu()), (5, lost_gpu()), (9, None)],  # as often as other failures, without progress too
        [(5, lost_gpu(UpstreamFailure)), (5, lost_gpu()), (9, None)],
    ],
)
def test_a_run_survives_failures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ends: list[End]) -> None:
    rescued: list[int] = []
    assert outcomes(monkeypatch, tmp_path, ends, rescued) == [at for at, _ in ends]
    assert rescued == [at for at, failure in ends if failure is not None]


@pytest.mark.parametrize("error", [RuntimeError("a bug"), None])
def test_an_actor_that_does_not_start_ends_the_run(monkeypatch: pytest.MonkeyPatch, error: RuntimeError | None) -> None:
    """A constructor's exception is raised itself, with its remote traceback."""

    def build(recoveries: object) -> Any:
        raise ActorNotStarted("the learner could not be built") from error

    prepared: Any = SimpleNamespace(config=load_config())
    nothing: Any = None
    with pytest.raises(RuntimeError if error else ActorNotStarted):
        restarts.run_with_recovery(prepared, build, nothing, Callbacks(), None)


NO_ROOM = ActorsNotPlaced("no room for the actors")


@pytest.mark.parametrize(
    ("waits", "error"),
    [
        ([None, NO_ROOM, None], None),  # a node is lost, and one joins during the second wait
        ([NO_ROOM], ActorsNotPlaced),  # at the start
        ([None, NO_ROOM, NO_ROOM], TooManyFailures),
    ],
)
def test_a_restart_waits_for_room_within_the_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, waits: list[ActorsNotPlaced | None], error: type | None
) -> None:
    ends = iter([DEAD, None])

    @contextmanager
    def opened(*arguments: object, **options: object) -> Iterator[Failing]:
        yield Failing(5, next(ends), [])

    remaining, rollbacks, messages = list(waits), [], RecordingCallback()

    def build(recoveries: Recoveries) -> Any:
        rollbacks.append(recoveries.rollbacks)
        if (failure := remaining.pop(0)) is not None:
            raise failure
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(restarts, "open_loop", opened)
    prepared: Any = SimpleNamespace(config=load_config(None, ["cluster.max_recoveries=2"]))
    arguments = (prepared, build, Checkpoints(tmp_path, keep=1), Callbacks([messages]), None)
    if error is None:
        outcome: Any = restarts.run_with_recovery(*arguments)
        assert outcome == "done"
        assert messages.messages[1:] == ["no room for the actors: asking for them again"]
    else:
        with pytest.raises(error, match=r"^no room for the actors"):
            restarts.run_with_recovery(*arguments)
    assert not remaining
    assert rollbacks == [0, 1, 1][: len(waits)]  # a wait rolls nothing back


def test_a_stopped_run_is_not_restarted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stop = Callback()
    stop.stop_requested = True
    with pytest.raises(ActorFailure, match="the learner died"):
        outcomes(monkeypatch, tmp_path, [(5, DEAD), (9, None)], [], stop)


@pytest.mark.parametrize("again", [5, 3])
def test_a_second_out_of_memory_without_progress_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, again: int
) -> None:
    with pytest.raises(ActorUnusable, match="ran out of memory"):
        outcomes(monkeypatch, tmp_path, [(5, OUT_OF_MEMORY), (again, OUT_OF_MEMORY), (9, None)], [])


def test_too_many_failures_end_the_run_after_a_rescue(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rescued: list[int] = []
    with pytest.raises(TooManyFailures, match="more than 2 actors failed"):
        outcomes(monkeypatch, tmp_path, [(5, DEAD), (6, DEAD), (7, DEAD), (9, None)], rescued)
    assert rescued == [5, 6, 7]
    rescued.clear()
    with pytest.raises(TooManyFailures):  # failures of rollout workers, which are replaced without a restart
        outcomes(monkeypatch, tmp_path, [(5, TooManyFailures("rollout worker 0 died"))], rescued)
    assert rescued == [5]


@pytest.mark.parametrize("window", [3600.0, 1e-9])
@pytest.mark.parametrize("failure", [ActorUnusable, UpstreamFailure])
def test_a_bug_of_a_gpu_or_engine_ends_the_run_after_max_recoveries_with_its_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, failure: type[ActorFailure], window: float
) -> None:
    """Also where restarts take longer than the window, in which recoveries are counted otherwise."""
    recording, rescued = RecordingCallback(), list[int]()
    ends: list[End] = [(5, lost_gpu(failure)), (3, lost_gpu(failure)), (3, lost_gpu(failure)), (9, None)]
    overrides = [f"cluster.recovery_window_seconds={window}"]
    with pytest.raises(RayTaskError, match="the remote traceback"):
        outcomes(monkeypatch, tmp_path, ends, rescued, recording, overrides=overrides)
    assert rescued == [5, 3, 3]
    last = recording.messages[-1]
    assert last.startswith("the learner lost its GPU during update; ")
    assert last.endswith("no checkpoint was written yet: continue with --resume run.name=a")


def test_progress_resets_the_count_of_failed_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ends: list[End] = [(at, lost_gpu()) for at in (5, 5, 6, 6, 7, 7)]
    overrides = ["cluster.recovery_window_seconds=1e-9"]
    assert len(outcomes(monkeypatch, tmp_path, [*ends, (9, None)], [], overrides=overrides)) == 7
