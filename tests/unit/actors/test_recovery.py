"""The limit on actor failures, and the errors after which an actor that is alive is replaced."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.exceptions import RayTaskError

from rlgaf_ray.actors import answers, recovery
from rlgaf_ray.actors.answers import ActorFailure, ActorsNotPlaced, ActorUnusable, Answers, UpstreamFailure
from rlgaf_ray.actors.recovery import Recoveries, TooManyFailures
from rlgaf_ray.config.cluster import ClusterSection


def test_failures_count_only_within_the_recovery_window(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 50.0, 101.0, 160.0, 190.0])
    monkeypatch.setattr(recovery, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    reports: list[str] = []
    recoveries = Recoveries(ClusterSection(max_recoveries=2, recovery_window_seconds=100.0), reports.append)
    failure = ActorFailure("rollout worker 1 died")
    for _ in range(4):  # at most two within 100 s
        recoveries.record(failure, "replacing it")
    assert reports == ["rollout worker 1 died: replacing it"] * 4
    with pytest.raises(TooManyFailures, match=r"^rollout worker 1 died; more than 2 actors failed within 100 s"):
        recoveries.record(failure, "replacing it")
    assert len(reports) == 4


def test_waits_longer_than_the_window_do_not_go_on_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 200.0, 290.0, 380.0])
    monkeypatch.setattr(recovery, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    recoveries = Recoveries(ClusterSection(max_recoveries=2, recovery_window_seconds=80.0))
    recoveries.record(ActorFailure("the learner died"), "rolling back")
    recoveries.record(ActorFailure("the learner died"), "rolling back")  # the first one has left the window
    without_room = ActorsNotPlaced("no room")
    recoveries.record(without_room, "asking again")
    with pytest.raises(TooManyFailures, match=r"^no room; gave up after 2 recoveries \(cluster.max_recoveries\)$"):
        recoveries.record(without_room, "asking again")


def test_take_returns_the_counts_once() -> None:
    recoveries = Recoveries(ClusterSection())
    recoveries.worker_replaced(3)
    recoveries.worker_replaced(5)
    recoveries.rolled_back()
    assert recoveries.take() == (2, 8, 1)
    assert recoveries.take() == (0, 0, 0)


class EngineDeadError(Exception):
    """Has the name of vLLM's exception."""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "ran out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "ran out of memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "ran out of memory"),
        (OSError(errno.ENOSPC, "No space left on device"), ""),
        (EngineDeadError("EngineCore encountered an issue"), "lost its engine"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ""),
        (ValueError("prompt too long"), ""),
    ],
)
def test_out_of_memory_and_engine_death_are_recoverable_and_bugs_are_not(error: Exception, reason: str) -> None:
    assert answers._unusable(error) == reason


def test_torch_cpu_out_of_memory_error_is_recognised() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60)
    assert answers._unusable(raised.value) == "ran out of memory"


@pytest.mark.parametrize(
    ("method", "failure", "sentence"),
    [
        ("generate", ActorUnusable, "rollout worker 1 ran out of memory during generate: no room"),
        (
            "update_weights",
            UpstreamFailure,
            "rollout worker 1, or the learner that sends its weights, ran out",
        ),
    ],
)
def test_out_of_memory_during_a_weight_push_may_be_the_learners(
    monkeypatch: pytest.MonkeyPatch, method: str, failure: type[ActorFailure], sentence: str
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise RayTaskError(method, "", MemoryError("no room"), ip="127.0.0.1").as_instanceof_cause()

    monkeypatch.setattr(answers.ray, "get", refuse)
    with pytest.raises(failure, match=sentence):
        Answers({"worker": "rollout worker 1"}, timeout=1.0).get("worker", method, None)  # type: ignore[arg-type]
