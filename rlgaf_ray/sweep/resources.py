"""Compute how many trials run at a time and the resources of each."""

from __future__ import annotations

import math
from dataclasses import replace

from rlgaf_ray.actors.placement import Placement, plan_placement
from rlgaf_ray.config import Config
from rlgaf_ray.errors import UserError
from rlgaf_ray.sweep.space import num_trials


def plan_trials(config: Config, *, cluster_cpus: float, cluster_gpus: float, node_cpus: int) -> tuple[Placement, int]:
    """Return the placement of one trial and the number of concurrent trials.

    By default, each node runs one trial on CPU, whose actors use all cores; on GPU, as many trials run as fit. The
    trials of a population reserve the cores between them, so that no others fit. Raises ``UserError`` with the
    requested and the available resources if they do not fit.
    """
    one = plan_placement(config, cluster_cpus=cluster_cpus, cluster_gpus=cluster_gpus, node_cpus=node_cpus)
    nodes = max(1, int(cluster_cpus // node_cpus))
    concurrent = config.sweep.max_concurrent
    population = config.sweep.scheduler == "pbt"
    if concurrent is None and one.gpus_per_actor > 0:
        concurrent = _fitting(cluster_gpus, one.total("GPU"))
    elif concurrent is None:
        asked = config.cluster.cpus_per_actor
        fitting = nodes if asked is None else _fitting(cluster_cpus, asked * one.num_actors)
        concurrent = fitting if population else min(nodes, fitting)
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
    enough_gpus = one.gpus_per_actor == 0 or _fitting(cluster_gpus, one.total("GPU")) > concurrent
    most = node_cpus / one.num_actors if population and enough_gpus else 1.0
    share = math.floor(min(most, cluster_cpus / concurrent / one.num_actors) * 1000) / 1000
    one = replace(one, cpus_per_actor=config.cluster.cpus_per_actor or share)
    if population:
        _check_population(config, one, concurrent, cluster_cpus=cluster_cpus, cluster_gpus=cluster_gpus)
    trials_per_node = math.ceil(concurrent / nodes)
    threads = config.cluster.threads or max(1, node_cpus // trials_per_node)
    rollout_threads = max(1, threads // one.num_rollout_workers)
    return replace(one, threads=threads, rollout_threads=rollout_threads), concurrent


def _check_population(
    config: Config, one: Placement, concurrent: int, *, cluster_cpus: float, cluster_gpus: float
) -> None:
    """Raise ``UserError`` if more trials fit than should run: only the resources limit a population (Ray 2.60).

    Tune's own limit counts the paused trials, and would leave trials out of the population.
    """
    fitting = num_trials(config)
    for each, available in ((one.total("CPU"), cluster_cpus), (one.total("GPU"), cluster_gpus)):
        if each > 0:
            fitting = min(fitting, _fitting(available, each))
    if fitting > concurrent:
        raise UserError(
            f"sweep.scheduler=pbt runs as many trials as fit, here {fitting}, rather than "
            f"sweep.max_concurrent={concurrent}: set sweep.max_concurrent={fitting}, or raise cluster.cpus_per_actor "
            "until fewer fit"
        )


def _fitting(available: float, each: float) -> int:
    return int((available + 1e-9) // each)
