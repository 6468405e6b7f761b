"""Starting a Ray of the run's own, with Ray left out."""

from __future__ import annotations

import pytest
import ray

from rlgaf_ray.actors import cluster
from rlgaf_ray.errors import UserError

BUSY = Exception("The current node timed out during startup. This could happen because ...")


def attempts(monkeypatch: pytest.MonkeyPatch, failures: list[Exception]) -> list[str]:
    """Calls of Ray; ``failures`` are raised one after the other, then it starts."""
    calls: list[str] = []

    def init(*words: str, **settings: object) -> None:
        calls.append("init")
        if failures:
            raise failures.pop(0)

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: calls.append("shutdown"))
    return calls


def test_a_start_that_misses_rays_own_limits_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = attempts(monkeypatch, [BUSY, BUSY])
    cluster._start()
    assert calls == ["init", "shutdown", "init", "shutdown", "init"]


def test_a_machine_that_is_too_busy_each_time_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = attempts(monkeypatch, [BUSY] * 3)
    with pytest.raises(UserError, match=r"^Ray did not start on this machine in 3 attempts, as it was too slow"):
        cluster._start()
    assert calls == ["init", "shutdown"] * 3


def test_other_failures_are_raised_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = attempts(monkeypatch, [ValueError("num_cpus")])
    with pytest.raises(ValueError, match="num_cpus"):
        cluster._start()
    assert calls == ["init"]
