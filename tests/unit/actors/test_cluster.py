"""Starting a local Ray, with ``ray.init`` replaced by a fake."""

from __future__ import annotations

import os
import sys

import pytest
import ray
from ray._private import services

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


@pytest.mark.parametrize(
    ("platform", "own"),
    [
        pytest.param("linux", True, marks=pytest.mark.skipif(sys.platform != "linux", reason="for Linux")),
        ("darwin", False),
    ],
)
def test_a_signal_to_the_process_group_does_not_reach_rays_processes(
    monkeypatch: pytest.MonkeyPatch, platform: str, own: bool
) -> None:
    monkeypatch.setattr(cluster.sys, "platform", platform)
    popen = services.ConsolePopen
    with cluster.own_process_groups():
        process = services.ConsolePopen(["sleep", "1000"])
    try:
        assert (os.getpgid(process.pid) != os.getpgrp()) == own
    finally:
        process.kill()
        process.wait()
    assert services.ConsolePopen is popen
