from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from rlgaf_ray.actors import placement as placement_module
from rlgaf_ray.actors import roles as roles_module
from rlgaf_ray.actors.answers import ActorsNotPlaced
from rlgaf_ray.actors.packing import Node
from rlgaf_ray.actors.placement import Placement, find_placement, plan_on, plan_placement, reserve
from rlgaf_ray.config import load_config
from rlgaf_ray.errors import UserError


def plan(*overrides: str, cpus: float = 2, gpus: float = 0, node_cpus: int = 2):
    return plan_placement(load_config(None, overrides), cluster_cpus=cpus, cluster_gpus=gpus, node_cpus=node_cpus)


def test_roles_that_take_turns_share_two_cores() -> None:
    placement = plan()
    assert placement.num_actors == 4  # two rollout workers
    assert placement.cpus_per_actor == 0.5
    assert (placement.threads, placement.rollout_threads, placement.device) == (2, 1, "cpu")
    assert plan(cpus=1, node_cpus=1).num_actors == 3


def test_rollout_workers_divide_the_cores() -> None:
    assert plan("rollout.num_workers=2").rollout_threads == 1
    assert plan("rollout.num_workers=4", cpus=16, node_cpus=16).rollout_threads == 4
    assert plan("rollout.num_workers=8").rollout_threads == 1


def test_async_rollouts_get_half_of_the_cores() -> None:
    def shares(node_cpus: int, *more: str) -> tuple[int, int, int]:
        placement = plan("schedule.mode=async", *more, cpus=node_cpus, node_cpus=node_cpus)
        return placement.num_rollout_workers, placement.rollout_threads, placement.threads

    assert shares(2) == (1, 1, 1)
    assert shares(8) == (2, 2, 4)
    assert shares(5) == (2, 1, 3)
    assert shares(1) == (1, 1, 1)
    assert shares(8, "rollout.num_workers=4") == (4, 1, 4)
    assert shares(8, "cluster.threads=3") == (2, 1, 3)


def test_default_is_one_cpu_per_actor_on_a_large_cluster() -> None:
    assert plan(cpus=64, node_cpus=16).cpus_per_actor == 1.0
    assert plan("cluster.cpus_per_actor=4", cpus=64, node_cpus=16).cpus_per_actor == 4
    assert plan("cluster.threads=3").threads == 3


def test_gpus() -> None:
    assert plan("cluster.gpus_per_actor=0.33", gpus=1).device == "cuda"
    with pytest.raises(
        UserError, match=r"asks for 3 GPUs \(3 actors x 1\) and the cluster has 1: lower cluster.gpus_per"
    ):
        plan("cluster.gpus_per_actor=1", gpus=1)


def test_too_many_cpus() -> None:
    with pytest.raises(UserError, match=r"asks for 16 CPUs \(4 actors x 4\) and the cluster has 2"):
        plan("cluster.cpus_per_actor=4")


# Explicit placements on a list of nodes.


def on(*nodes: Node, overrides: tuple[str, ...]):
    return plan_on(load_config(None, overrides), nodes)


GPU_NODES = (Node(32, 4), Node(32, 4), Node(32, 4))


def test_colocated_roles_share_each_gpu() -> None:
    wide = ("rollout.num_workers=8", "learner.num_workers=8", "discriminator.num_workers=4")
    placement = on(*GPU_NODES, overrides=("cluster.placement=colocate", "cluster.gpus_per_actor=1", *wide))
    assert placement.bundles == [{"CPU": 3.0, "GPU": 1.0}] * 4 + [{"CPU": 2.0, "GPU": 1.0}] * 4
    assert [*placement.learner_bundles] == [*placement.rollout_bundles] == list(range(8))
    assert [*placement.discriminator_bundles] == list(range(4))
    assert (placement.gpus_per_actor, placement.strategy, placement.shares_gpus) == (0.333, "PACK", True)
    assert placement.engines_start_last and not placement.engines_start_in_turn  # each has its own GPU


def test_separate_roles_get_their_own_gpus() -> None:
    wide = ("rollout.num_workers=2", "rollout.tensor_parallel_size=4", "learner.num_workers=3")
    placement = on(*GPU_NODES, overrides=("cluster.placement=separate", "cluster.gpus_per_actor=1", *wide))
    assert placement.bundles == [{"CPU": 1.0, "GPU": 1.0}] * 4 + [{"CPU": 1.0, "GPU": 4.0}] * 2
    assert [*placement.learner_bundles, *placement.discriminator_bundles, *placement.rollout_bundles] == list(range(6))
    assert (placement.gpus_per_rollout_worker, placement.shares_gpus) == (4.0, False)
    assert not placement.engines_start_last


def test_engines_start_in_turn_with_fractional_gpus() -> None:
    assert on(Node(16, 1), overrides=("cluster.gpus_per_actor=0.3", "rollout.num_workers=1")).engines_start_in_turn
    assert not on(Node(4), overrides=()).engines_start_last


def test_separate_cores() -> None:
    placement = on(Node(4), Node(4), overrides=("cluster.placement=separate",))  # two workers, learner, discriminator
    assert (placement.cpus_per_actor, placement.threads, placement.rollout_threads) == (2.0, 2, 2)
    assert not placement.shared_cores
    with pytest.raises(
        UserError,
        match=r"asks for 4 CPUs \(4 actors x 1\) and the cluster has 2: .*plan that fits: cluster.placement=auto ",
    ):
        on(Node(2), overrides=("cluster.placement=separate", "rollout.num_workers=2", "cluster.cpus_per_actor=1"))


def test_spread_actors_use_the_cores_of_their_node() -> None:
    placement = on(*[Node(8)] * 3, overrides=("cluster.placement=spread", "rollout.num_workers=6"))
    assert (placement.strategy, placement.threads, placement.rollout_threads) == ("SPREAD", 8, 4)


def test_colocated_cpu_actors_are_on_one_node() -> None:
    placement = on(Node(2), Node(8), overrides=("cluster.placement=colocate", "rollout.num_workers=2"))
    assert (placement.strategy, placement.cpus_per_actor, placement.shared_cores) == ("STRICT_PACK", 1.0, True)


@pytest.mark.parametrize(
    ("overrides", "problem", "nearest"),
    [
        (
            ["cluster.placement=separate", "rollout.num_workers=12"],
            "the run asks for 14 GPUs (14 actors x 1) and the cluster has 12",
            "rollout.num_workers=10",
        ),
        (
            ["cluster.placement=separate", "learner.num_workers=16"],
            "the run asks for 18 GPUs (18 actors x 1) and the cluster has 12",
            "learner.num_workers=8",
        ),
        (
            ["cluster.placement=separate", "rollout.tensor_parallel_size=8"],
            "the run asks for 10 GPUs and",  # of 12: no node has 8
            "rollout.tensor_parallel_size=4",
        ),
        (
            ["cluster.placement=colocate", "rollout.num_workers=13"],
            "the run asks for 13 GPUs (13, shared by an actor of each role) and the cluster has 12",
            "rollout.num_workers=12",
        ),
        (
            ["cluster.placement=separate", "cluster.cpus_per_actor=40"],
            "the run asks for 120 CPUs (3 actors x 40) and the cluster has 96",
            "cluster.cpus_per_actor=null",
        ),
    ],
)
def test_the_error_names_a_plan_that_fits(overrides: list[str], problem: str, nearest: str) -> None:
    asked = ("cluster.gpus_per_actor=1", *overrides)
    with pytest.raises(UserError) as caught:
        on(*GPU_NODES, overrides=asked)
    message = str(caught.value)
    assert message.startswith(problem) or "CPUs and " in message
    assert message.endswith(f"; the nearest plan that fits: {nearest}")
    on(*GPU_NODES, overrides=(*asked, *nearest.split()))


def test_the_suggested_plan_shares_a_single_gpu() -> None:
    with pytest.raises(UserError, match=r"the nearest plan that fits: cluster.gpus_per_actor=0.333$"):
        plan("cluster.gpus_per_actor=1", gpus=1, cpus=8, node_cpus=8)
    with pytest.raises(UserError, match=r"the nearest plan that fits: cluster.placement=colocate$"):
        on(Node(8, 1), overrides=("cluster.gpus_per_actor=1", "cluster.placement=separate"))


@pytest.mark.parametrize(
    ("node", "overrides", "problem", "nearest"),
    [
        (
            Node(8, 2),
            ("learner.num_workers=2", "cluster.gpus_per_actor=1"),
            "the run asks for 4 GPUs (4 actors x 1) and the cluster has 2: ",
            "learner.num_workers=1 cluster.gpus_per_actor=0.5",
        ),
        (
            Node(8, 1),
            ("learner.num_workers=2", "cluster.gpus_per_actor=0.25"),
            "ranks 0 and 1 of the learner would share a GPU, and NCCL needs one for each: raise "
            "cluster.gpus_per_actor=0.25, or lower learner.num_workers; ",
            "learner.num_workers=1",
        ),
        (
            Node(8, 3),
            ("discriminator.num_workers=3", "cluster.gpus_per_actor=0.4"),  # the first one is on the learner's GPU
            "ranks 1 and 2 of the discriminator would share a GPU, and NCCL needs one for each: raise "
            "cluster.gpus_per_actor=0.4, or lower discriminator.num_workers; ",
            "discriminator.num_workers=1",
        ),
    ],
)
def test_ranks_of_a_group_never_share_a_gpu(node: Node, overrides: tuple[str, ...], problem: str, nearest: str) -> None:
    with pytest.raises(UserError) as caught:
        on(node, overrides=overrides)
    assert str(caught.value).startswith(problem)
    assert str(caught.value).endswith(f"the nearest plan that fits: {nearest}")
    on(node, overrides=(*overrides, *nearest.split()))


def test_ranks_of_two_groups_may_share_a_gpu() -> None:
    on(Node(8, 2), overrides=("discriminator.num_workers=2", "cluster.gpus_per_actor=0.5"))
    on(Node(8, 5), overrides=("learner.num_workers=2", "discriminator.num_workers=2", "cluster.gpus_per_actor=0.6"))
    colocated = ("cluster.placement=colocate", "learner.num_workers=2", "discriminator.num_workers=2")
    on(Node(8, 2), overrides=("cluster.gpus_per_actor=1", *colocated))


def test_nothing_fits() -> None:
    with pytest.raises(UserError, match=r"and the cluster has 0: .*; no smaller plan fits either$"):
        plan("cluster.gpus_per_actor=1", gpus=0)


def test_tensor_parallel_shards_need_whole_gpus() -> None:
    for placed in ("cluster.gpus_per_actor=0.5", "cluster.placement=colocate"):
        with pytest.raises(UserError, match=r"rollout.tensor_parallel_size=2 needs whole GPUs"):
            plan("rollout.tensor_parallel_size=2", "cluster.gpus_per_actor=1", placed, gpus=8)


def test_default_placement_on_one_node() -> None:
    placement = on(Node(2), overrides=())
    assert placement == plan()
    assert (placement.bundles, placement.strategy) == ([{"CPU": 0.5}] * 4, "PACK")
    assert (placement.threads, placement.rollout_threads, placement.shared_cores) == (2, 1, True)
    learner, discriminator = placement.learner_bundles, placement.discriminator_bundles
    assert [*learner, *discriminator, *placement.rollout_bundles] == [0, 1, 2, 3]


def test_find_placement_waits_for_nodes_to_join(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes, asked = [Node(8)], []

    def join(bundles: list[dict[str, float]]) -> None:
        asked.append(bundles)
        nodes.append(Node(8, 2))

    monkeypatch.setattr(placement_module, "cluster_nodes", lambda: list(nodes))
    monkeypatch.setattr(placement_module, "request_resources", join)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = load_config(None, ["cluster.gpus_per_actor=1", "cluster.join_seconds=30", "cluster.placement=separate"])
    monkeypatch.setattr(placement_module.time, "sleep", lambda seconds: None)
    placement = find_placement(config)
    assert placement.total("GPU") == 3
    assert asked[0] == [{"CPU": 1.0, "GPU": 1.0}] * 3
    assert len(nodes) == 4  # the last request, with enough nodes, keeps them
    nodes[:] = [Node(8)]
    impatient = config.model_copy(update={"cluster": config.cluster.model_copy(update={"join_seconds": 0.0})})
    with pytest.raises(UserError, match="the cluster has 0"):
        find_placement(impatient)


@pytest.mark.parametrize(
    ("overrides", "seconds"),
    [
        ((), 120.0),
        (("cluster.timeout_seconds=30",), 30.0),
        (("cluster.join_seconds=900",), 900.0),
        (("cluster.join_seconds=900", "cluster.timeout_seconds=30"), 900.0),
        (("cluster.join_seconds=60",), 120.0),
    ],
)
def test_actors_wait_for_nodes_to_join_again(
    monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], seconds: float
) -> None:
    """The roles ask for their resources again after a node was lost."""

    def refuse(placement: Placement, *, timeout: float) -> None:
        raise ActorsNotPlaced(f"{timeout:g}")

    monkeypatch.setattr(roles_module, "reserve", refuse)
    with pytest.raises(ActorsNotPlaced, match=f"^{seconds:g}$"):
        roles_module.RayRoles(Path(), Path(), load_config(None, overrides), plan(), max_tokens=8, pad_token_id=0)


@pytest.mark.parametrize(
    ("nodes", "problem"),
    [
        ([Node(1)], "the run asks for 2 CPUs (4 actors x 0.5) and the cluster has 1: lower cluster.cpus_per_actor or "),
        ([Node(2)], "the run asks for 2 CPUs and 0 GPUs, but other jobs leave 1.5 CPUs and 0 GPUs of the cluster free"),
    ],
)
def test_what_keeps_the_actors_from_being_placed(
    monkeypatch: pytest.MonkeyPatch, nodes: list[Node], problem: str
) -> None:
    placement = plan()
    group = SimpleNamespace(wait=lambda timeout: False)
    monkeypatch.setattr(placement_module, "placement_group", lambda bundles, strategy: group)
    monkeypatch.setattr(placement_module, "remove_placement_group", lambda group: None)
    monkeypatch.setattr(placement_module, "cluster_nodes", lambda: nodes)
    monkeypatch.setattr(placement_module.ray, "available_resources", lambda: {"CPU": 1.5})
    with pytest.raises(ActorsNotPlaced) as caught:
        reserve(placement, timeout=2.0)
    before, _, after = str(caught.value).partition(": ")
    assert before == "the actors got no resources within 2 s (a larger cluster.join_seconds waits longer)"
    assert after.startswith(problem)
