"""Connecting to Ray: the cluster that the environment or the config names, else one on this machine for this run."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private import ray_constants
from ray.autoscaler.sdk import request_resources

from rlgaf_ray.actors.environment import endpoint, named_address, prepare_environment
from rlgaf_ray.actors.packing import Node
from rlgaf_ray.actors.planning import totals
from rlgaf_ray.config.schema import Config
from rlgaf_ray.errors import UserError

PROBE_SECONDS = 10.0
START_ATTEMPTS = 3
TIMED_OUT = "timed out during startup"  # Ray's words
OWN_CLUSTER = {
    # By default nodes free objects once a second: in a push by parts the whole model would pile up in the object store.
    "free_objects_period_milliseconds": 0,
    # By default Ray remembers 100,000 calls of actors: some 250 MB, for as long as the run lasts.
    "task_events_max_num_task_in_gcs": 1000,
    # By default Ray adds 15 to the niceness of its workers. They do all the work of a run: any other process on the
    # machine would then take their cores.
    "worker_niceness": int(os.environ.get("RAY_worker_niceness", "0")),  # noqa: SIM112 (Ray's spelling)
}


@contextmanager
def ray_session(config: Config) -> Iterator[None]:
    """Connect, and leave at the end; a Ray that was started here ends with the block.

    That one asks for a token, as Ray itself sees to unless ``RAY_AUTH_MODE`` says otherwise.
    Raises ``UserError`` where a named cluster does not answer.
    """
    address = named_address(config.cluster.address)
    prepare_environment(address)
    handler = signal.getsignal(signal.SIGTERM)
    # Warnings of Ray's own start-up speak of metrics exporters and accelerators; errors come back as exceptions.
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address is None:
        # Ray Train's distributed workers report through the dashboard's agent; a warm-up in this process does not.
        dashboard = config.warmup.num_workers > 1 or config.cluster.gpus_per_actor > 0
        with on_loopback():
            _start(num_cpus=config.cluster.num_cpus, include_dashboard=dashboard, _system_config=OWN_CLUSTER, **quiet)
    else:
        try:
            probe(address)
            ray.init(address, **quiet)
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"no Ray cluster answers at {address} ({error}): start one with 'ray start --head', or unset "
                "cluster.address and RAY_ADDRESS to run on this machine alone (RAY_AUTH_MODE=token where it asks)"
            ) from error
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # the program's own, which ray.init replaces
    try:
        yield
    finally:
        if config.cluster.join_seconds > 0:
            request_resources(num_cpus=0)  # an autoscaler need no longer keep what find_placement asked for
        ray.shutdown()


def _start(**settings: Any) -> None:
    """Start a Ray on this machine. On a very busy one it misses limits of its own (15 s for its agents): once more.

    Raises ``UserError`` where it misses them each time.
    """
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            ray.init("local", **settings)
            return
        except Exception as error:  # Ray raises it as it is
            if TIMED_OUT not in str(error):
                raise
            ray.shutdown()
            if attempt == START_ATTEMPTS:
                raise UserError(
                    f"Ray did not start on this machine in {START_ATTEMPTS} attempts, as it was too slow to answer "
                    "itself: stop what else runs here, or join a cluster that runs (cluster.address)"
                ) from error


@contextmanager
def on_loopback() -> Iterator[None]:
    """A Ray that starts inside listens on 127.0.0.1 alone, as it does by itself where it knows no clusters (macOS).

    It has no other switch for that: ``_node_ip_address="127.0.0.1"`` becomes the machine's own address again. The
    processes that it starts are told the address.
    """
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def probe(address: str) -> None:
    """Raise ``OSError`` where nobody listens: Ray itself would wait for minutes."""
    host, port = endpoint(address)
    if host is not None and port is not None:
        socket.create_connection((host, port), timeout=PROBE_SECONDS).close()


def cluster_nodes() -> list[Node]:
    """What each living machine of the cluster offers."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(offer.get("CPU", 0.0), offer.get("GPU", 0.0)) for offer in alive]


def cluster_resources() -> tuple[float, float, int]:
    """CPUs and GPUs of the whole cluster, and the CPUs of its smallest node that has any."""
    return totals(cluster_nodes())
