"""Compute how many trials run at a time and the resources of each."""

from __future__ import annotations

import math
from dataclasses import replace

from rlgaf_ray.actors.placement import Placement, plan_placement
from rlgaf_ray.config import Config
from rlgaf_ray.errors import UserError


def plan_trials(config: Config, *, cluster_cpus: float, cluster_gpus: float, node_cpus: int) -> tuple[Placement, int]:
    """Return the placement of one trial and the number of concurrent trials.

    By default, each node runs one trial on CPU, whose actors use all cores; on GPU, as many trials run as fit. Raises
    ``UserError`` with the requested and the available resources if they do not fit.
    """
    one = plan_placement(config, cluster_cpus=cluster_cpus, cluster_gpus=cluster_gpus, node_cpus=node_cpus)
    nodes = max(1, int(cluster_cpus // node_cpus))
    concurrent = config.sweep.max_concurrent
    if concurrent is None and one.gpus_per_actor > 0:
        concurrent = int((cluster_gpus + 1e-9) // one.total("GPU"))
    elif concurrent is None:
        asked = config.cluster.cpus_per_actor
        concurrent = nodes if asked is None else min(nodes, int((cluster_cpus + 1e-9) // (asked * one.num_actors)))
    for name, each, available in (
        ("CPUs", config.cluster.cpus_per_actor or 0.0, cluster_cpus),
        ("GPUs", one.total("GPU") / one.num_actors, cluster_gpus),
    ):
        total = each * one.num_actors * concurrent
        if total > available + 1e-9:
            raise UserError(
                f"the sweep asks for {total:g} {name} ({concurrent} trials x {one.num_actors} actors x {each:g}) and "
                f"the cluster has {available:g}: lower sweep.max_concurrent, cluster.{name.lower()}_per_actor or "
                "rollout.num_workers, or add nodes"
            )
    # Round down to 0.001 (Ray's resolution is 0.0001), so that the shares never add up to more than the total.
    cpus = (
        config.cluster.cpus_per_actor or math.floor(min(1.0, cluster_cpus / concurrent / one.num_actors) * 1000) / 1000
    )
    trials_per_node = math.ceil(concurrent / nodes)
    threads = config.cluster.threads or max(1, node_cpus // trials_per_node)
    rollout_threads = max(1, threads // one.num_rollout_workers)
    return replace(one, cpus_per_actor=cpus, threads=threads, rollout_threads=rollout_threads), concurrent
