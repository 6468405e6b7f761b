"""Nodes that leave and nodes that come: Ray's simulated cluster, one core a node, so that each actor has its own."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from tests.chaos.program import SMALL, Run, lost, title

OBJECT_STORE_BYTES = 128 * 2**20


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Four nodes. A learner, a discriminator and two rollout workers: beside the head, one node has a worker alone."""
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")  # sockets have short names: a deep folder would be refused
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


def of_a_worker(cluster: Cluster) -> Any:
    """A node, not the head, on which there is a rollout worker."""
    for node in cluster.worker_nodes:
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        if any("ray::RolloutWorker" in title(process) for process in raylet.children()):
            return node
    raise AssertionError("no rollout worker beside the head")


def replaced(run: Run, number: int) -> Callable[[], bool]:
    return lambda: run.replaced() == number


def test_a_run_goes_on_when_nodes_leave_and_others_come(
    start, small_under, record, cluster: Cluster, tmp_path: Path
) -> None:
    settings = ["rollout.num_workers=2", "cluster.placement=spread", "cluster.cpus_per_actor=1", "run.iterations=2000"]
    words = small_under(tmp_path, "run.name=hurt", *SMALL, *settings, f"cluster.address={cluster.address}")
    run: Run = start(words, tmp_path / "hurt")
    run.reaches(3)
    for number, graceful in enumerate((False, True), start=1):
        node = of_a_worker(cluster)
        told = len(re.findall("rollout worker . died", run.output))  # a replacement may have been lost as well
        moment = run.hit([])
        cluster.remove_node(node, allow_graceful=graceful)
        detected = run.says("rollout worker . died", times=told + 1) - moment
        added = run.hit([])
        add_node(cluster)
        recovered = run.wait(replaced(run, number), "row that counts the worker") - added
        how = "gracefully" if graceful else "hard"
        name = f"node of a rollout worker removed {how} (recovered: since another came)"
        record(name, detected=[detected], recovered=[recovered], lost=lost(run.folder))
    run.hit([run.main], signal.SIGINT)
    run.ended(130)
