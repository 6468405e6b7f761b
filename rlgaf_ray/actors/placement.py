"""Who gets which cores and GPUs: the plan, its refusal where the cluster is too small, and the placement group."""

from __future__ import annotations

import time
from collections.abc import Sequence

import ray
from ray.autoscaler.sdk import request_resources
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from rlgaf_ray.actors.cluster import cluster_nodes
from rlgaf_ray.actors.environment import named_address
from rlgaf_ray.actors.layout import Placement
from rlgaf_ray.actors.packing import Node
from rlgaf_ray.actors.planning import asked_by, nearest, share_out, shortage, smallest_node, totals
from rlgaf_ray.config.schema import Config
from rlgaf_ray.errors import UserError

FREE_SECONDS = 20.0
MALLOC_TUNABLES = ("hugetlb=1", "mmap_max=0", f"trim_threshold={2**40}")


def plan_placement(
    config: Config, *, cluster_cpus: float, cluster_gpus: float, node_cpus: int, nodes: Sequence[Node] | None = None
) -> Placement:
    """Share out the cluster. ``nodes``: its machines, so that whether each bundle finds one is asked too.

    Raises ``UserError`` with the sum asked, the sum there and the nearest plan that fits.
    """
    there = [Node(cluster_cpus, cluster_gpus)] if nodes is None else nodes
    request = asked_by(config, node_cpus=node_cpus)
    placement = share_out(request, there, node_cpus=node_cpus)
    problem = shortage(placement, there)
    if problem:
        raise UserError(f"{problem}; {nearest(request, there, node_cpus)}")
    return placement


def plan_on(config: Config, nodes: Sequence[Node]) -> Placement:
    """As ``plan_placement``, on these machines."""
    cpus, gpus, node_cpus = totals(nodes)
    return plan_placement(config, cluster_cpus=cpus, cluster_gpus=gpus, node_cpus=node_cpus, nodes=nodes)


def find_placement(config: Config) -> Placement:
    """The placement on the cluster that this process has joined, once it is known to be had; nothing is held.

    Raises ``UserError`` with the sum asked, the sum there and the nearest plan that fits: at once where the machines
    are too few (after ``cluster.join_seconds``), after ``FREE_SECONDS`` where others hold them.
    """
    nodes = cluster_nodes()
    deadline = time.monotonic() + config.cluster.join_seconds
    while (left := deadline - time.monotonic()) > 0:
        node_cpus = smallest_node(nodes)
        wanted = share_out(asked_by(config, node_cpus=node_cpus), nodes, node_cpus=node_cpus)
        request_resources(bundles=wanted.bundles)  # an autoscaler starts the nodes for it, and keeps them
        if shortage(wanted, nodes) is None:
            break
        time.sleep(min(1.0, left))
        nodes = cluster_nodes()
    placement = plan_on(config, nodes)
    if named_address(config.cluster.address) is None:
        return placement
    group = _granted(placement, timeout=FREE_SECONDS)
    if group is None:
        asked, free = (
            f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"
            for resources in ({"CPU": placement.total("CPU"), "GPU": placement.total("GPU")}, ray.available_resources())
        )
        node_cpus = smallest_node(nodes)
        smaller = nearest(asked_by(config, node_cpus=node_cpus), _free_nodes(), node_cpus)
        raise UserError(f"the run asks for {asked} and others leave {free} of the cluster free: wait, or {smaller}")
    remove_placement_group(group)
    return placement


def _free_nodes() -> list[Node]:
    """What others leave, as if it were one machine: Ray tells the sums only."""
    free = ray.available_resources()
    return [Node(free.get("CPU", 0.0), free.get("GPU", 0.0))]


def reserve(placement: Placement, *, timeout: float) -> PlacementGroup:
    """The placement's bundles. Raises ``UserError`` where they are not to be had."""
    group = _granted(placement, timeout=timeout)
    if group is None:
        raise UserError(
            f"waited {timeout:g} s for {len(placement.bundles)} bundles of {placement.bundles[0]}; free are "
            f"{ray.available_resources()}: another job holds the rest, or no single node has room for one bundle"
        )
    return group


def _granted(placement: Placement, *, timeout: float) -> PlacementGroup | None:
    group = placement_group(placement.bundles, strategy=placement.strategy)
    if group.wait(timeout):
        return group
    remove_placement_group(group)
    return None


def actor_environment(threads: int) -> dict[str, str]:
    """Environment of an actor's process, read before torch starts its threads.

    The C library by default gives large blocks back to the system at once and faults every page in again at the next
    step: a fifth of the learner's time. Its tunables keep the memory of the largest step, in huge pages.
    """
    return {
        "OMP_NUM_THREADS": str(threads),
        "GLIBC_TUNABLES": ":".join(f"glibc.malloc.{name}" for name in MALLOC_TUNABLES),
        "TOKENIZERS_PARALLELISM": "false",
    }
