from __future__ import annotations

import pytest

from rlgaf_ray.config import load_config
from rlgaf_ray.errors import UserError
from rlgaf_ray.sweep.resources import plan_trials


def plan(*overrides: str, cpus: float = 2, gpus: float = 0, node_cpus: int = 2):
    return plan_trials(load_config(None, overrides), cluster_cpus=cpus, cluster_gpus=gpus, node_cpus=node_cpus)


def test_one_trial_uses_two_cores() -> None:
    placement, concurrent = plan()
    assert (concurrent, placement.num_actors, placement.cpus_per_actor, placement.threads) == (1, 4, 0.5, 2)
    assert placement.bundles == [{"CPU": 0.5}] * 4


def test_concurrent_trials_share_the_cores() -> None:
    placement, concurrent = plan("sweep.max_concurrent=2")
    assert (concurrent, placement.cpus_per_actor, placement.threads, placement.rollout_threads) == (2, 0.25, 1, 1)
    assert plan("sweep.max_concurrent=2", "cluster.threads=3")[0].threads == 3


def test_a_cluster_runs_one_trial_per_node() -> None:
    placement, concurrent = plan(cpus=64, node_cpus=16)
    assert (concurrent, placement.cpus_per_actor, placement.threads) == (4, 1.0, 16)
    assert plan("cluster.cpus_per_actor=8", cpus=64, node_cpus=16)[1] == 2
    assert plan("cluster.gpus_per_actor=0.25", cpus=64, gpus=4, node_cpus=16)[1] == 5  # three actors each


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["cluster.cpus_per_actor=4"], r"the run asks for 16 CPUs \(4 actors x 4\) and the cluster has 2"),
        (
            ["cluster.cpus_per_actor=0.5", "sweep.max_concurrent=3"],
            r"the sweep asks for 6 CPUs \(3 trials x 4 actors x 0.5\) and the cluster has 2: lower "
            r"sweep.max_concurrent, cluster.cpus_per_actor or rollout.num_workers, or add nodes",
        ),
        (["cluster.gpus_per_actor=1"], r"the run asks for 3 GPUs \(3 actors x 1\) and the cluster has 0"),
    ],
)
def test_a_sweep_that_does_not_fit_raises(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(*overrides)


POPULATION = ("sweep.scheduler=pbt", "sweep.num_samples=40", "sweep.space.generator.learning_rate.uniform=[0.1, 0.2]")


@pytest.mark.parametrize(
    ("overrides", "cluster", "concurrent"),
    [
        ([], {"cpus": 2}, 1),
        ([], {"cpus": 16, "node_cpus": 16}, 1),
        ([], {"cpus": 64, "node_cpus": 16}, 4),
        ([], {"cpus": 6, "node_cpus": 2}, 3),
        ([], {"cpus": 20, "node_cpus": 8}, 2),  # a node of 12 and one of 8
        (["sweep.max_concurrent=2"], {"cpus": 64, "node_cpus": 64}, 2),
        (["sweep.max_concurrent=3"], {"cpus": 64, "node_cpus": 64}, 3),
        (["sweep.max_concurrent=7"], {"cpus": 2}, 7),
        (["cluster.cpus_per_actor=1"], {"cpus": 16, "node_cpus": 16}, 4),
        (["cluster.cpus_per_actor=0.25"], {"cpus": 2}, 2),
        (["cluster.gpus_per_actor=0.25"], {"cpus": 64, "node_cpus": 64, "gpus": 4}, 5),
        (["cluster.gpus_per_actor=0.25", "sweep.max_concurrent=2"], {"cpus": 64, "node_cpus": 64, "gpus": 4}, 2),
    ],
)
def test_only_so_many_trials_of_a_population_fit(overrides: list[str], cluster: dict, concurrent: int) -> None:
    """Tune starts every trial that fits: paused ones would count against its own limit."""
    placement, planned = plan(*POPULATION, *overrides, **cluster)
    trial = {name: placement.total(name) for name in ("CPU", "GPU") if placement.total(name)}
    available = {"CPU": cluster["cpus"], "GPU": cluster.get("gpus", 0)}
    fitting = min(int((available[name] + 1e-9) // each) for name, each in trial.items())
    assert planned == fitting == concurrent
    assert max(bundle["CPU"] for bundle in placement.bundles) <= cluster.get("node_cpus", 2)


@pytest.mark.parametrize(
    ("overrides", "fitting", "concurrent"),
    [(["sweep.max_concurrent=1"], 4, 1), (["sweep.max_concurrent=4", "cluster.cpus_per_actor=2"], 8, 4)],
)
def test_a_population_of_which_more_fit_is_refused(overrides: list[str], fitting: int, concurrent: int) -> None:
    with pytest.raises(UserError) as caught:
        plan(*POPULATION, *overrides, cpus=64, node_cpus=16)
    assert str(caught.value) == (
        f"sweep.scheduler=pbt runs as many trials as fit, here {fitting}, rather than "
        f"sweep.max_concurrent={concurrent}: set sweep.max_concurrent={fitting}, or raise cluster.cpus_per_actor "
        "until fewer fit"
    )
    plan(*POPULATION, *overrides, f"sweep.num_samples={concurrent}", cpus=64, node_cpus=16)
