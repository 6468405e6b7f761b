"""Connect to the Ray cluster of the config or the environment, or start a local one for this run."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray
from ray._private import ray_constants, services
from ray.autoscaler.sdk import request_resources

from rlgaf_ray.actors.environment import endpoint, named_address, prepare_environment
from rlgaf_ray.actors.packing import Node
from rlgaf_ray.actors.planning import totals
from rlgaf_ray.config.schema import Config
from rlgaf_ray.errors import UserError

PROBE_SECONDS = 10.0
START_ATTEMPTS = 3
TIMED_OUT = "timed out during startup"  # part of Ray's error message
LOCAL_CLUSTER = {
    # By default nodes free objects once a second: a push part by part would accumulate the whole model in the store.
    "free_objects_period_milliseconds": 0,
    # By default Ray keeps events of 100,000 tasks, about 250 MB, until the run ends.
    "task_events_max_num_task_in_gcs": 1000,
    # By default Ray raises the niceness of its workers by 15. They do all the work of a run, so any other process on
    # the machine would get their cores.
    "worker_niceness": int(os.environ.get("RAY_worker_niceness", "0")),  # noqa: SIM112 (Ray's spelling)
}


@contextmanager
def ray_session(config: Config) -> Iterator[None]:
    """Connect to Ray for the duration of the block; a local Ray that is started here ends with it.

    A local Ray uses token authentication, Ray's default, unless ``RAY_AUTH_MODE`` is set. Raises ``UserError`` if the
    named cluster does not answer.
    """
    address = named_address(config.cluster.address)
    prepare_environment(address)
    handler = signal.getsignal(signal.SIGTERM)
    # Ray's startup warnings are about metrics exporters and accelerators; errors are raised as exceptions.
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address is None:
        # Distributed Ray Train workers report through the dashboard's agent; a warm-up in this process does not.
        dashboard = config.warmup.num_workers > 1 or config.cluster.gpus_per_actor > 0
        with on_loopback(), own_process_groups():
            _start(num_cpus=config.cluster.num_cpus, include_dashboard=dashboard, _system_config=LOCAL_CLUSTER, **quiet)
    else:
        try:
            probe(address)
            ray.init(address, **quiet)
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"no Ray cluster answers at {address} ({error}): start one with 'ray start --head', or unset "
                "cluster.address and RAY_ADDRESS to run locally; set RAY_AUTH_MODE=token if the cluster needs a token"
            ) from error
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # restore the handler that ray.init has replaced
    try:
        yield
    finally:
        if config.cluster.join_seconds > 0:
            request_resources(num_cpus=0)  # release the request of find_placement to the autoscaler
        ray.shutdown()


def _start(**settings: Any) -> None:
    """Start a local Ray. On a busy machine its agents may exceed Ray's startup timeout of 15 s: retry then.

    Raises ``UserError`` if every attempt times out.
    """
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            ray.init("local", **settings)
            return
        except Exception as error:  # Ray raises a plain Exception
            if TIMED_OUT not in str(error):
                raise
            ray.shutdown()
            if attempt == START_ATTEMPTS:
                raise UserError(
                    f"Ray did not start on this machine in {START_ATTEMPTS} attempts: its processes timed out; "
                    "reduce the load on this machine, or join a running cluster (cluster.address)"
                ) from error


@contextmanager
def on_loopback() -> Iterator[None]:
    """Context in which a local Ray listens on 127.0.0.1 only, as Ray does on macOS, where it disables clusters.

    Ray has no other setting for it: it replaces ``_node_ip_address="127.0.0.1"`` by the machine's address. The
    processes that Ray starts receive the address from it.
    """
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def own_process_groups() -> Iterator[None]:
    """Context in which the processes that Ray starts do not receive a signal to this process's group.

    ``timeout`` and shells send SIGTERM to the whole group, and a run needs Ray to write its checkpoint. Ray has no
    setting for it. Only Linux ends these processes with this one; elsewhere Ray ends them by their common group.
    """
    popen = services.ConsolePopen
    if sys.platform == "linux":
        services.ConsolePopen = partial(popen, process_group=0)  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        services.ConsolePopen = popen  # type: ignore[misc]


def probe(address: str) -> None:
    """Raise ``OSError`` if nothing listens at the address; Ray itself would wait for minutes."""
    host, port = endpoint(address)
    if host is not None and port is not None:
        socket.create_connection((host, port), timeout=PROBE_SECONDS).close()


def cluster_nodes() -> list[Node]:
    """Return the resources of each node that is alive."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(offer.get("CPU", 0.0), offer.get("GPU", 0.0)) for offer in alive]


def cluster_resources() -> tuple[float, float, int]:
    """Return the CPUs and GPUs of the cluster, and the CPUs of its smallest node that has any."""
    return totals(cluster_nodes())
