"""How many losses a run bears, and which errors of a living actor are a loss."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.exceptions import RayTaskError

from rlgaf_ray.actors import answers, recovery
from rlgaf_ray.actors.answers import ActorFailure, ActorSpent, Answers, SourceLost
from rlgaf_ray.actors.recovery import Recoveries, TooManyLost
from rlgaf_ray.config.cluster import ClusterSection


def test_losses_count_within_a_window_and_are_forgotten_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 50.0, 101.0, 160.0, 190.0])
    monkeypatch.setattr(recovery, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    told: list[str] = []
    recoveries = Recoveries(ClusterSection(max_recoveries=2, recovery_window_seconds=100.0), told.append)
    failure = ActorFailure("rollout worker 1 died")
    for _ in range(4):  # at most two within 100 s
        recoveries.lost(failure, "it is replaced")
    assert told == ["rollout worker 1 died: it is replaced"] * 4
    with pytest.raises(TooManyLost, match=r"^rollout worker 1 died; more than 2 actors were lost within 100 s"):
        recoveries.lost(failure, "it is replaced")
    assert len(told) == 4


def test_what_was_lost_is_taken_once() -> None:
    recoveries = Recoveries(ClusterSection())
    recoveries.worker_replaced(3)
    recoveries.worker_replaced(5)
    recoveries.rolled_back()
    assert recoveries.take() == (2, 8, 1)
    assert recoveries.take() == (0, 0, 0)


class EngineDeadError(Exception):
    """Named as vLLM's."""


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
def test_an_actor_without_memory_or_engine_is_spent_and_one_with_a_bug_is_not(error: Exception, reason: str) -> None:
    assert answers._spent(error) == reason


def test_torchs_own_words_for_no_memory_on_cpu_are_known() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60)
    assert answers._spent(raised.value) == "ran out of memory"


@pytest.mark.parametrize(
    ("method", "failure", "sentence"),
    [
        ("generate", ActorSpent, "rollout worker 1 ran out of memory during generate: no room"),
        (
            "update_weights",
            SourceLost,
            "rollout worker 1, or the learner whose weights it was to take, ran out",
        ),
    ],
)
def test_a_worker_is_not_replaced_for_weights_that_the_learner_had_no_memory_for(
    monkeypatch: pytest.MonkeyPatch, method: str, failure: type[ActorFailure], sentence: str
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise RayTaskError(method, "", MemoryError("no room"), ip="127.0.0.1").as_instanceof_cause()

    monkeypatch.setattr(answers.ray, "get", refuse)
    with pytest.raises(failure, match=sentence):
        Answers({"worker": "rollout worker 1"}, timeout=1.0).get("worker", method, None)  # type: ignore[arg-type]
