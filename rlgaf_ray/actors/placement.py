"""Plan the cores and GPUs of each actor, check that the cluster has them, and reserve the placement group.

The workers of a warm-up, which Ray Train places, are checked too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import ray
from ray.autoscaler.sdk import request_resources
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from rlgaf_ray.actors.answers import ActorsNotPlaced
from rlgaf_ray.actors.cluster import cluster_nodes
from rlgaf_ray.actors.environment import named_address
from rlgaf_ray.actors.layout import Placement
from rlgaf_ray.actors.packing import Bundle, Node, pack
from rlgaf_ray.actors.planning import build_placement, misfit, nearest, request_from, shortage, smallest_node, totals
from rlgaf_ray.config.cluster import ClusterSection
from rlgaf_ray.config.schema import Config
from rlgaf_ray.errors import UserError

FREE_SECONDS = 20.0
STARTUP_SECONDS = 120.0
PLACED_SECONDS = 1.0  # to answer for a group that is placed
MALLOC_TUNABLES = ("hugetlb=1", "mmap_max=0", f"trim_threshold={2**40}")


def plan_placement(
    config: Config, *, cluster_cpus: float, cluster_gpus: float, node_cpus: int, nodes: Sequence[Node] | None = None
) -> Placement:
    """Plan a run on a cluster. With ``nodes``, also check that every bundle fits on a node.

    Raises ``UserError`` with the requested and the available resources and the nearest plan that fits.
    """
    available = [Node(cluster_cpus, cluster_gpus)] if nodes is None else nodes
    request = request_from(config, node_cpus=node_cpus)
    placement = build_placement(request, available, node_cpus=node_cpus)
    problem = misfit(placement, available)
    if problem:
        raise UserError(f"{problem}; {nearest(request, available, node_cpus)}")
    return placement


def plan_on(config: Config, nodes: Sequence[Node]) -> Placement:
    """Plan a run on these nodes, as ``plan_placement``."""
    cpus, gpus, node_cpus = totals(nodes)
    return plan_placement(config, cluster_cpus=cpus, cluster_gpus=gpus, node_cpus=node_cpus, nodes=nodes)


def find_placement(config: Config) -> Placement:
    """Plan a run on the connected cluster and check that its resources are free; nothing stays reserved.

    Raises ``UserError`` with the requested and the available resources and the nearest plan that fits: after
    ``cluster.join_seconds`` if the nodes are too few or too small, after another ``FREE_SECONDS`` if other jobs hold
    them.
    """

    def wanted(nodes: Sequence[Node]) -> tuple[Sequence[Bundle], bool]:
        node_cpus = smallest_node(nodes)
        placement = build_placement(request_from(config, node_cpus=node_cpus), nodes, node_cpus=node_cpus)
        return placement.bundles, shortage(placement, nodes) is None

    nodes = _joined(wanted, config.cluster.join_seconds)
    placement = plan_on(config, nodes)
    if named_address(config.cluster.address) is None:
        return placement
    group = _granted(placement, timeout=FREE_SECONDS)
    if group is None:
        node_cpus = smallest_node(nodes)
        smaller = nearest(request_from(config, node_cpus=node_cpus), _free_nodes(), node_cpus)
        raise UserError(f"{_held_by_others(placement)}: wait, or {smaller}")
    remove_placement_group(group)
    return placement


def _joined(wanted: Callable[[Sequence[Node]], tuple[Sequence[Bundle], bool]], seconds: float) -> Sequence[Node]:
    """Return the cluster's nodes, as soon as they fit or after ``seconds``.

    ``wanted`` returns the bundles to place on the nodes, and whether they fit.
    """
    nodes = cluster_nodes()
    deadline = time.monotonic() + seconds
    while (remaining := deadline - time.monotonic()) > 0:
        bundles, fit = wanted(nodes)
        request_resources(bundles=[*map(dict, bundles)])  # an autoscaler starts the missing nodes and keeps them
        if fit:
            break
        time.sleep(min(1.0, remaining))
        nodes = cluster_nodes()
    return nodes


def _held_by_others(placement: Placement) -> str:
    asked = _words({"CPU": placement.total("CPU"), "GPU": placement.total("GPU")})
    return f"the run asks for {asked}, but other jobs leave {free_resources()} of the cluster free"


def free_resources() -> str:
    return _words(ray.available_resources())


def _words(resources: Bundle) -> str:
    return f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"


def warmup_bundles(config: Config, num_workers: int) -> list[dict[str, float]]:
    """Return the resources of each of Ray Train's workers; empty for a warm-up in the driver's process."""
    gpus = config.cluster.gpus_per_actor
    if gpus == 0:
        return [] if num_workers == 1 else [{"CPU": 1.0}] * num_workers
    return [{"GPU": min(1.0, gpus) if num_workers == 1 else 1.0}] * num_workers  # NCCL refuses two ranks on one GPU


def check_warmup(config: Config) -> None:
    """Check that the nodes have room for a warm-up's workers, which Ray Train does not do.

    Raises ``UserError`` with the number of workers that fit, after ``cluster.join_seconds``.
    """
    count = config.warmup.num_workers
    bundles = warmup_bundles(config, count)
    if not bundles:
        return

    def fit(nodes: Sequence[Node], num_workers: int = count) -> bool:
        return pack(warmup_bundles(config, num_workers), "PACK", nodes) is not None

    nodes: Sequence[Node] = cluster_nodes()
    if not fit(nodes):  # asking for nodes that are there would replace the run's own request
        nodes = _joined(lambda nodes: (bundles, fit(nodes)), config.cluster.join_seconds)
    if fit(nodes):
        return
    most = next((number for number in range(count - 1, 0, -1) if fit(nodes, number)), 0)
    fix = f"set warmup.num_workers={most}, or add nodes" if most else "add nodes"
    cpus, gpus, _ = totals(nodes)
    each = " and ".join(f"{amount:g} {name}" for name, amount in bundles[0].items())
    raise UserError(
        f"the warm-ups ask for {count} workers with {each} each (warmup.num_workers), and the cluster has "
        f"{_words({'CPU': cpus, 'GPU': gpus})}: {fix}"
    )


def _free_nodes() -> list[Node]:
    """Return the free resources as one node: Ray reports only the totals over the cluster."""
    free = ray.available_resources()
    return [Node(free.get("CPU", 0.0), free.get("GPU", 0.0))]


def startup_seconds(settings: ClusterSection) -> float:
    """Return how long the actors' resources may take to be granted; an autoscaler may have to start nodes for them."""
    return max(settings.join_seconds, min(settings.timeout_seconds, STARTUP_SECONDS))


def reserve(placement: Placement, *, timeout: float) -> PlacementGroup:
    """Reserve the placement's bundles: at the start of a run, and again when it restarts after a node was lost.

    Raises ``ActorsNotPlaced`` if Ray does not grant them within ``timeout`` seconds.
    """
    group = _granted(placement, timeout=timeout)
    if group is None:
        problem = shortage(placement, cluster_nodes()) or _held_by_others(placement)
        raise ActorsNotPlaced(
            f"the actors got no resources within {timeout:g} s (a larger cluster.join_seconds waits longer): {problem}"
        )
    return group


def missing_resources(group: PlacementGroup, bundle: int) -> str | None:
    """Say which resources a bundle asks for and which are free, if the group has lost nodes; None if it is placed."""
    if group.wait(PLACED_SECONDS):
        return None
    return f"it asks for {_words(group.bundle_specs[bundle])}, and the cluster has {free_resources()} free"


def _granted(placement: Placement, *, timeout: float) -> PlacementGroup | None:
    group = placement_group(placement.bundles, strategy=placement.strategy)
    if group.wait(timeout):
        return group
    remove_placement_group(group)
    return None


def actor_environment(threads: int) -> dict[str, str]:
    """Return the environment variables of an actor's process; torch reads them before it starts its threads.

    By default glibc returns large freed blocks to the system at once and faults their pages in again at the next step,
    which costs a fifth of the learner's time. The tunables keep the memory of the largest step, in huge pages.
    """
    return {
        "OMP_NUM_THREADS": str(threads),
        "GLIBC_TUNABLES": ":".join(f"glibc.malloc.{name}" for name in MALLOC_TUNABLES),
        "TOKENIZERS_PARALLELISM": "false",
    }
