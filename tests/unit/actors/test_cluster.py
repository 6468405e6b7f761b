"""Starting a local Ray, with ``ray.init`` replaced by a fake."""

from __future__ import annotations

import pytest
import ray

from rlgaf_ray.actors import cluster
from rlgaf_ray.errors import UserError

BUSY = Exception("The current node timed out during startup. This could happen because ...")


def attempts(monkeypatch: pytest.MonkeyPatch, failures: list[Exception]) -> list[str]:
    """Record the calls to Ray; ``init`` raises the ``failures`` in order, then succeeds."""
    calls: list[str] = []

    def init(*words: str, **settings: object) -> None:
        calls.append("init")
        if failures:
            raise failures.pop(0)

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: calls.append("shutdown"))
    return calls


def test_a_ray_startup_timeout_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = attempts(monkeypatch, [BUSY, BUSY])
    cluster._start()
    assert calls == ["init", "shutdown", "init", "shutdown", "init"]


def test_a_ray_that_never_starts_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = attempts(monkeypatch, [BUSY] * 3)
    with pytest.raises(UserError, match=r"^Ray did not start on this machine in 3 attempts: its processes timed out"):
        cluster._start()
    assert calls == ["init", "shutdown"] * 3


def test_other_failures_are_raised_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = attempts(monkeypatch, [ValueError("num_cpus")])
    with pytest.raises(ValueError, match="num_cpus"):
        cluster._start()
    assert calls == ["init"]
