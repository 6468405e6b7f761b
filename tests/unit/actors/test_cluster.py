"""Starting a local Ray, with ``ray.init`` replaced by a fake."""

from __future__ import annotations

import pytest
import ray

from rlgaf_ray.actors import cluster

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


@pytest.mark.parametrize(("failures", "expected"), [([BUSY] * 3, 3), ([ValueError("num_cpus")], 1)])
def test_other_errors_and_the_last_timeout_are_raised(
    monkeypatch: pytest.MonkeyPatch, failures: list[Exception], expected: int
) -> None:
    calls = attempts(monkeypatch, list(failures))
    with pytest.raises(type(failures[0]), match=str(failures[0])[:8]):
        cluster._start()
    assert calls.count("init") == expected
