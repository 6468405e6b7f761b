"""Simulate a Ray cluster of several nodes on this machine, to try placements.

    python cluster/local_cluster.py --nodes 3 --cpus 4 --gpus 2                       # until Ctrl-C
    python cluster/local_cluster.py --nodes 3 --cpus 4 -- python -m rlgaf_ray.main cluster.placement=spread

The command joins the cluster through RAY_ADDRESS; its exit code is returned. CPUs and GPUs are only resource counts:
code that uses a GPU fails.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ray.cluster_utils import Cluster

OBJECT_STORE_BYTES = 256 * 2**20  # per node


@contextmanager
def local_cluster(nodes: Sequence[tuple[int, int]]) -> Iterator[str]:
    """Start nodes with these numbers of CPUs and GPUs and yield the cluster's address; they end with the block."""
    os.environ.setdefault("RAY_TMPDIR", "/tmp")  # the paths of Unix sockets are limited in length
    os.environ.setdefault("RAY_free_objects_period_milliseconds", "0")  # as in the cluster files of this folder
    cluster = Cluster()
    try:
        for cpus, gpus in nodes:
            cluster.add_node(
                num_cpus=cpus, num_gpus=gpus, object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False
            )
        cluster.wait_for_nodes()
        yield cluster.address
    finally:
        cluster.shutdown()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Simulate a Ray cluster on this machine.")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--cpus", type=int, default=2, help="CPUs per node")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs per node")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- and a command to run in the cluster")
    arguments = parser.parse_args(argv)
    command = [word for word in arguments.command if word != "--"]
    with local_cluster([(arguments.cpus, arguments.gpus)] * arguments.nodes) as address:
        if command:
            return subprocess.run(command, env={**os.environ, "RAY_ADDRESS": address}, check=False).returncode
        print(f"RAY_ADDRESS={address}", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
