from __future__ import annotations

import pytest

from rlgaf_ray.actors.placement import plan_placement
from rlgaf_ray.config import load_config


def plan(*overrides: str, cpus: float = 2, gpus: float = 0, node_cpus: int = 2):
    return plan_placement(load_config(None, overrides), cluster_cpus=cpus, cluster_gpus=gpus, node_cpus=node_cpus)


def test_two_cores_are_shared_by_roles_that_take_turns() -> None:
    placement = plan()
    assert placement.num_actors == 4  # two rollout workers
    assert placement.cpus_per_actor == 0.5
    assert (placement.threads, placement.rollout_threads, placement.device) == (2, 1, "cpu")
    assert plan(cpus=1, node_cpus=1).num_actors == 3


def test_rollout_workers_share_the_cores_because_they_sample_at_the_same_time() -> None:
    assert plan("rollout.num_workers=2").rollout_threads == 1
    assert plan("rollout.num_workers=4", cpus=16, node_cpus=16).rollout_threads == 4
    assert plan("rollout.num_workers=8").rollout_threads == 1


def test_rollouts_that_are_made_meanwhile_have_cores_of_their_own() -> None:
    def shares(node_cpus: int, *more: str) -> tuple[int, int, int]:
        placement = plan("schedule.mode=async", *more, cpus=node_cpus, node_cpus=node_cpus)
        return placement.num_rollout_workers, placement.rollout_threads, placement.threads

    assert shares(2) == (1, 1, 1)
    assert shares(8) == (2, 2, 4)
    assert shares(5) == (2, 1, 3)
    assert shares(1) == (1, 1, 1)
    assert shares(8, "rollout.num_workers=4") == (4, 1, 4)
    assert shares(8, "cluster.threads=3") == (2, 1, 3)


def test_a_large_cluster_gives_one_cpu_each_unless_asked() -> None:
    assert plan(cpus=64, node_cpus=16).cpus_per_actor == 1.0
    assert plan("cluster.cpus_per_actor=4", cpus=64, node_cpus=16).cpus_per_actor == 4
    assert plan("cluster.threads=3").threads == 3


def test_gpus() -> None:
    assert plan("cluster.gpus_per_actor=0.33", gpus=1).device == "cuda"
    with pytest.raises(
        ValueError, match=r"asks for 3 GPUs \(3 actors x 1\) and the cluster has 1: lower cluster.gpus_per"
    ):
        plan("cluster.gpus_per_actor=1", gpus=1)


def test_too_many_cpus() -> None:
    with pytest.raises(ValueError, match=r"asks for 16 CPUs \(4 actors x 4\) and the cluster has 2"):
        plan("cluster.cpus_per_actor=4")
