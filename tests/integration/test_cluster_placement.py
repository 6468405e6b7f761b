"""Three simulated nodes: each placement puts each role where it says, and what cannot be met is refused in time."""

from __future__ import annotations

import importlib.util
import logging
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlgaf_ray.actors import placement as placement_module
from rlgaf_ray.actors.cluster import cluster_nodes
from rlgaf_ray.actors.packing import pack
from rlgaf_ray.actors.placement import Placement, find_placement, reserve
from rlgaf_ray.config import Config, load_config
from rlgaf_ray.errors import UserError
from tests.patience import HANGS_AFTER, wait_until

NODES = [(4, 2)] * 3
LOCAL_CLUSTER = Path(__file__).parents[2] / "cluster/local_cluster.py"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of the cluster that this process has joined."""
    spec = importlib.util.spec_from_file_location("local_cluster", LOCAL_CLUSTER)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.local_cluster(NODES) as address:
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False)
        yield address
        ray.shutdown()


@pytest.fixture
def config(address: str):
    def make(*overrides: str) -> Config:
        return load_config(None, [f"cluster.address={address}", *overrides])

    return make


@pytest.fixture
def granted(config) -> Iterator:
    """Reserves what a config asks for; returns the placement, its group, and the node of each bundle."""
    groups: list[PlacementGroup] = []

    def make(*overrides: str) -> tuple[Placement, PlacementGroup, list[str]]:
        settle()
        placement = find_placement(config(*overrides))
        settle()
        groups.append(reserve(placement, timeout=HANGS_AFTER))
        held = placement_group_table(groups[-1])["bundles_to_node_id"]
        return placement, groups[-1], [held[index] for index in range(len(held))]

    yield make
    for group in groups:
        remove_placement_group(group)


def settle() -> None:
    """Wait for the groups that were removed before to have given back what they held."""
    wait_until(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"], "free cluster")


def test_all_nodes_are_seen(address: str) -> None:
    assert [(node.cpus, node.gpus) for node in cluster_nodes()] == NODES


def test_colocated_roles_share_each_gpu(granted) -> None:
    overrides = ["rollout.num_workers=3", "learner.num_workers=3", "discriminator.num_workers=3"]
    overrides += ["cluster.cpus_per_actor=0.5"]
    placement, group, nodes = granted("cluster.placement=colocate", "cluster.gpus_per_actor=1", *overrides)
    assert len(nodes) == 3
    assert len(set(nodes)) == 2  # packed: two GPUs a node

    @ray.remote(num_cpus=0.5, num_gpus=placement.gpus_per_actor)
    def where() -> tuple[str, list[str]]:
        time.sleep(0.5)  # so that all three are there at once
        context = ray.get_runtime_context()
        return context.get_node_id(), context.get_accelerator_ids()["GPU"]

    last = [
        role[-1] for role in (placement.learner_bundles, placement.discriminator_bundles, placement.rollout_bundles)
    ]
    calls = [
        where.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group, index)).remote() for index in last
    ]
    found = ray.get(calls)
    assert found[0] == found[1] == found[2]
    assert found[0][0] == nodes[2]
    assert len(found[0][1]) == 1


def test_separate_roles_get_their_own_gpus(granted) -> None:
    overrides = ["rollout.num_workers=2", "rollout.tensor_parallel_size=2", "cluster.gpus_per_actor=1"]
    placement, _, nodes = granted("cluster.placement=separate", *overrides)
    assert len(nodes) == placement.num_actors == 4
    workers = [nodes[bundle] for bundle in placement.rollout_bundles]
    others = [nodes[bundle] for bundle in (*placement.learner_bundles, *placement.discriminator_bundles)]
    assert len(set(workers)) == 2 and set(others).isdisjoint(workers)


def test_spread_actors_are_on_all_nodes(granted) -> None:
    placement, _, nodes = granted("cluster.placement=spread", "rollout.num_workers=4")
    assert Counter(nodes).most_common() and set(Counter(nodes).values()) == {2}  # six actors on three nodes
    assert nodes[placement.learner_bundles[0]] != nodes[placement.discriminator_bundles[0]]
    assert len({nodes[bundle] for bundle in placement.rollout_bundles}) >= 2


def test_colocated_cpu_actors_are_on_one_node(granted) -> None:
    _, _, nodes = granted("cluster.placement=colocate", "rollout.num_workers=2")
    assert len(nodes) == 4 and len(set(nodes)) == 1


@pytest.mark.parametrize(
    "overrides",
    [
        ["cluster.placement=spread", "rollout.num_workers=7"],
        ["cluster.placement=separate", "rollout.num_workers=4", "cluster.gpus_per_actor=1"],
        ["cluster.placement=auto", "rollout.num_workers=3", "cluster.cpus_per_actor=1.0"],
    ],
)
def test_ray_puts_bundles_as_forecast(granted, overrides: list[str]) -> None:
    placement, _, nodes = granted(*overrides)
    forecast = pack(placement.bundles, placement.strategy, cluster_nodes())
    assert forecast is not None
    assert sorted(Counter(nodes).values()) == sorted(Counter(forecast).values())


def test_a_plan_too_large_is_refused_at_once(config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement_module, "placement_group", None)  # nothing is asked of the cluster
    with pytest.raises(UserError) as caught:
        find_placement(config("cluster.placement=separate", "cluster.gpus_per_actor=1", "rollout.num_workers=16"))
    assert str(caught.value) == (
        "the run asks for 18 GPUs (18 actors x 1) and the cluster has 6: lower cluster.gpus_per_actor or "
        "rollout.num_workers, or add nodes; the nearest plan that fits: rollout.num_workers=4"
    )


def test_what_others_hold_is_refused_in_time(granted, config, monkeypatch: pytest.MonkeyPatch) -> None:
    assert placement_module.FREE_SECONDS < 30
    monkeypatch.setattr(placement_module, "FREE_SECONDS", 2.0)
    separate = ["cluster.placement=separate", "cluster.gpus_per_actor=1", "cluster.cpus_per_actor=1"]
    granted(*separate, "rollout.num_workers=1")
    with pytest.raises(UserError) as caught:
        find_placement(config(*separate, "rollout.num_workers=3"))
    message = str(caught.value)
    assert message.startswith(
        "the run asks for 5 CPUs and 5 GPUs, but other jobs leave 9 CPUs and 3 GPUs of the cluster free"
    )
    assert message.endswith("the nearest plan that fits: rollout.num_workers=1")
