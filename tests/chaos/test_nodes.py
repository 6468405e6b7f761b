"""Nodes that leave and join Ray's simulated cluster; with one core per node, each actor has its own node."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from tests.chaos.program import SMALL, Run, count_missing, reached, title

OBJECT_STORE_BYTES = 128 * 2**20


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Four nodes for a learner, a discriminator and two rollout workers; at least one worker is not on the head."""
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")  # the paths of Unix sockets are limited in length
    cluster = Cluster()
    try:
        for _ in range(4):
            add_node(cluster)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()


def add_node(cluster: Cluster) -> None:
    cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False)


def worker_node(cluster: Cluster) -> Any:
    """Return a node other than the head that runs a rollout worker."""
    for node in cluster.worker_nodes:
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        if any("ray::RolloutWorker" in title(process) for process in raylet.children()):
            return node
    raise AssertionError("no rollout worker outside the head node")


def replaced(run: Run, number: int) -> Callable[[], bool]:
    return lambda: run.replaced() == number


def test_a_run_continues_when_nodes_leave_and_join(
    start, small_under, record, cluster: Cluster, tmp_path: Path
) -> None:
    settings = ["rollout.num_workers=2", "cluster.placement=spread", "cluster.cpus_per_actor=1", "run.iterations=2000"]
    words = small_under(tmp_path, "run.name=hurt", *SMALL, *settings, f"cluster.address={cluster.address}")
    run: Run = start(words, tmp_path / "hurt")
    run.reaches(3)
    for number, graceful in enumerate((False, True), start=1):
        node = worker_node(cluster)
        failures = len(re.findall("rollout worker . died", run.output))  # a replacement may have failed as well
        moment = run.hit([])
        cluster.remove_node(node, allow_graceful=graceful)
        detected = run.prints("rollout worker . died", times=failures + 1) - moment
        if number == 1:  # no node joins for STARTUP_SECONDS
            run.prints("rollout worker . has had no resources for .* continuing with 1 of 2 rollout workers")
            run.reaches(int(reached(run.folder)) + 2)
        added = run.hit([])
        add_node(cluster)
        recovered = run.wait(replaced(run, number), "row that counts the worker") - added
        how = "gracefully" if graceful else "hard"
        name = f"node of a rollout worker removed {how} (recovered: since another joined)"
        record(name, detected=[detected], recovered=[recovered], missing=count_missing(run.folder))
    run.hit([run.main], signal.SIGINT)
    run.ended(130)
