"""The two runners over the same parts, and a run that is stopped and resumed."""

from __future__ import annotations

import math
import os
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.cloudpickle
import torch

from rlgaf_ray.actors.answers import ActorFailure
from rlgaf_ray.actors.cluster import ray_session
from rlgaf_ray.actors.placement import plan_placement
from rlgaf_ray.actors.recovery import Recoveries
from rlgaf_ray.actors.roles import RayRoles
from rlgaf_ray.actors.rollout import RolloutWorker
from rlgaf_ray.actors.warmup import Warmups, prepare_warmups
from rlgaf_ray.config import Config
from rlgaf_ray.data.handover import checksums
from rlgaf_ray.engines.build import sampling_settings
from rlgaf_ray.loop.draws import Draws
from rlgaf_ray.loop.rollouts import rollout_seeds
from rlgaf_ray.run.preparation import Data, Prepared, prepare_data
from tests.integration.local_run import run

DOCUMENTED = set(re.findall(r"`([a-z]+/[a-z0-9_]+)`", (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()))
PPO = [
    "generator.algorithm=ppo",
    "generator.ppo.critic_warmup_iterations=2",
    "generator.ppo.pretraining_coefficient=0.1",
]
STEPPING = [*PPO, "generator.ppo.critic_warmup_iterations=0"]
SEQGAN = [
    "generator.algorithm=seqgan",
    "generator.seqgan.num_completions=2",
    "generator.seqgan.stride=4",
    "generator.seqgan.rollout_policy_rate=0.8",
]
GUMBEL = ["generator.algorithm=gumbel"]
ASYNC = [
    "schedule.mode=async",
    "schedule.max_staleness=2",
    "rollout.num_workers=2",
    "rollout.requests_per_worker=2",
    "discriminator.updates_per_generator_update=1",
    "discriminator.held_out=32",
    "discriminator.overfit_gap=0.02",
]
AVERAGE = ["generator.average_decay=0.9"]
STABILISED = [
    "generator.reinforce.credit=sequence",
    "discriminator.updates_per_generator_update=0.5",
    "discriminator.dropout=0.1",
    "discriminator.frozen_layers=1",
    "discriminator.replay_share=0.25",
    "discriminator.match_lengths=true",
    "rollout.stop_at_end_of_text=true",
    "generator.entropy_bonus=0.01",
    "reward.whiten=true",
    "reward.clip=2.0",
]
BASE = [
    "warmup.sft.steps=4",
    "generator.reinforce.kl.reference=base",
    "reward.base_logprob=0.05",
    "discriminator.updates_per_generator_update=0.5",
    "discriminator.view=last_tokens",
    "discriminator.view_tokens=5",
]
GAD = [
    "discriminator.loss=bradley_terry",
    "discriminator.replay_share=0.25",
    "discriminator.leave_out_liked=0.2",
    "generator.reinforce.credit=sequence",
    "generator.reinforce.baseline=group_mean",
    "generator.reinforce.advantage_scale=group",
]

GENERATIVE = [
    "discriminator.architecture=generative",
    "discriminator.held_out=20",
    "generator.reinforce.credit=sequence",
]


@pytest.fixture(scope="module")
def ray_cluster(cache: Path):
    with ray_session(Config()):
        yield


@pytest.fixture
def prepared(small_config, cache: Path, ray_cluster):
    def prepare(*more: str) -> tuple[Config, Data, Warmups]:
        config = small_config("rollout.engine=transformers", "learner.precision=float32", "cluster.threads=1", *more)
        data = prepare_data(config, cache)
        return config, data, prepare_warmups(config, data.task, data.tokenizer, cache, lambda name, progress: None)

    return prepare


def test_ray_workers_run_at_the_drivers_niceness(ray_cluster) -> None:
    assert ray.get(ray.remote(lambda: os.nice(0)).remote()) == os.nice(0)


@pytest.mark.parametrize(
    "algorithm",
    [
        pytest.param(
            ["rollout.num_workers=2", "discriminator.contrast=labels", "discriminator.contrast_weight=1.3"],
            id="reinforce",
        ),
        pytest.param(STABILISED, id="stabilised", marks=pytest.mark.slow),
        pytest.param(PPO, id="ppo", marks=pytest.mark.slow),
        pytest.param([*SEQGAN, *AVERAGE], id="seqgan-average", marks=pytest.mark.slow),
        pytest.param(GAD, id="gad", marks=pytest.mark.slow),
        pytest.param(GENERATIVE, id="generative", marks=pytest.mark.slow),
        pytest.param(BASE, id="base-and-view", marks=pytest.mark.slow),
        pytest.param(GUMBEL, id="gumbel", marks=pytest.mark.slow),
        pytest.param([*GUMBEL, "generator.gumbel.mode=conditional"], id="gumbel-conditional", marks=pytest.mark.slow),
        pytest.param(ASYNC, id="async", marks=pytest.mark.slow),
    ],
)
def test_local_and_ray_runners_agree_step_for_step(prepared, rows_of, tmp_path: Path, algorithm: list[str]) -> None:
    local, on_ray = both_runners(prepared("run.iterations=6", *algorithm), rows_of, tmp_path)
    assert len(local) == 7
    for ours, theirs in zip(local, on_ray, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-6)
    staleness = [0, 1, 2, 2, 2, 2] if algorithm is ASYNC else [0] * 6
    assert [row["rollout/staleness"] for row in on_ray[1:]] == staleness
    logged = {name for row in local for name in row} - {"iteration"}
    assert logged <= DOCUMENTED
    assert all(math.isfinite(value) for row in local for value in row.values())


@pytest.mark.slow
def test_two_workers_complete_seqgans_prefixes_as_one_engine_does(prepared, rows_of, tmp_path: Path) -> None:
    """Only nearly the same: each worker's batches are smaller, which rounds differently."""
    local, on_ray = both_runners(prepared("run.iterations=2", *SEQGAN, "rollout.num_workers=2"), rows_of, tmp_path)
    for ours, theirs in zip(local, on_ray, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-3)


def both_runners(
    prepared: tuple[Config, Data, Warmups], rows_of, folder: Path
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Return the rows of the same run in this process and on Ray."""
    config, data, warmups = prepared
    torch.set_num_threads(1)
    run(Prepared(config, data, warmups), folder / "local")
    roles = RayRoles(
        warmups.generator,
        warmups.discriminator,
        config,
        plan_placement(config, cluster_cpus=2, cluster_gpus=0, node_cpus=2),
        max_tokens=data.task.max_tokens,
        pad_token_id=data.tokenizer.pad_token_id,
        base_folder=warmups.base,
    )
    try:
        run(Prepared(config, data, warmups), folder / "ray", roles)
    finally:
        roles.close()
    return rows_of(folder / "local"), rows_of(folder / "ray")


def exhaust(worker: RolloutWorker) -> None:
    """Has its engine ask the system for more memory than there is."""

    def ask_for_too_much(*arguments: Any, **options: Any) -> torch.Tensor:
        return torch.empty(2**60)

    worker.engine.generate = ask_for_too_much  # type: ignore[assignment, method-assign]


@pytest.mark.slow
def test_a_worker_without_memory_is_replaced_and_those_that_wait_for_a_dead_learner_are_not(prepared) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors do not find the tests' modules
    config, data, warmups = prepared("rollout.num_workers=2")
    placement = plan_placement(config, cluster_cpus=2, cluster_gpus=0, node_cpus=2)
    sizes = {"max_tokens": data.task.max_tokens, "pad_token_id": data.tokenizer.pad_token_id}
    told: list[str] = []
    recoveries = Recoveries(config.cluster, told.append)
    roles = RayRoles(warmups.generator, warmups.discriminator, config, placement, recoveries=recoveries, **sizes)
    try:
        roles.push_weights(1)()
        asked = (
            Draws(config, data.task, config.discriminator.needs).prompts(),
            sampling_settings(config),
            rollout_seeds(config, 1, 16),
        )
        before = roles.generate(*asked)
        spent = roles.pool.workers[0]
        ray.get(spent.__ray_call__.remote(exhaust))
        after = roles.generate(*asked)
        assert roles.pool.workers[0] is not spent
        assert roles.recovered()[0] == 1
        (sentence,) = told
        assert sentence.startswith("rollout worker 0 ran out of memory during generate: ")
        assert [rollout.response_ids.tolist() for rollout in after] == [r.response_ids.tolist() for r in before]
        assert {rollout.policy_version for rollout in after} == {1}

        roles.learners[0].__ray_call__.remote(lambda learner: os.kill(os.getpid(), signal.SIGKILL))
        with pytest.raises(ActorFailure, match="the learner died"):
            roles.push_weights(2)()
        assert roles.recovered() == (0, 0, 0)
    finally:
        roles.close()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_group_that_loses_a_rank_is_saved_by_the_one_that_is_left_if_it_is_no_shard(
    prepared, tmp_path: Path, strategy: str
) -> None:
    config, data, warmups = prepared("learner.num_workers=2", f"learner.strategy={strategy}", *STEPPING, *AVERAGE)
    placement = plan_placement(config, cluster_cpus=2, cluster_gpus=0, node_cpus=2)
    sizes = {"max_tokens": data.task.max_tokens, "pad_token_id": data.tokenizer.pad_token_id}
    roles = RayRoles(warmups.generator, warmups.discriminator, config, placement, **sizes)
    draws, folders = (
        Draws(config, data.task, config.discriminator.needs),
        [tmp_path / name for name in ("whole", "left")],
    )
    try:
        roles.push_weights(0)()
        rollouts = roles.generate(draws.prompts(), sampling_settings(config), rollout_seeds(config, 1, 16))
        scored = [replace(item, reward=item.score) for item in roles.score(rollouts)]
        text = draws.text_beside(rollouts)
        roles.update_generator(scored, iteration=0, text=text)()
        roles.save(folders[0])
        roles.learners[0].__ray_call__.remote(lambda learner: os.kill(os.getpid(), signal.SIGKILL))
        with pytest.raises(ActorFailure, match="rank 0 of the learner died"):
            roles.update_generator(scored, iteration=1, text=text)
        if strategy == "fsdp":
            with pytest.raises(ActorFailure, match="no surviving rank holds the full learner"):
                roles.rescue(folders[1])
        else:
            roles.rescue(folders[1])
            whole, left = map(checksums, folders)
            assert whole == left and {"learner/critic/optimizer.json", "learner/average/model.safetensors"} <= set(left)
            assert (folders[1] / "learner/optimizer.safetensors").stat().st_size > 1e6  # the update was a step
    finally:
        roles.close()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("algorithm", [[], [*PPO, *AVERAGE]], ids=["reinforce", "ppo-average"])
def test_groups_of_two_train_as_one_worker_does(
    prepared, rows_of, tmp_path: Path, algorithm: list[str], strategy: str
) -> None:
    """Weights are pushed in several parts, and a checkpoint of the group is taken up by one process."""
    torch.set_num_threads(1)
    alone = ["discriminator.held_out=20", "discriminator.dropout=0"]  # whose draws depend on the rank
    shared = ["run.iterations=4", "checkpoint.every=2", "evaluation.every=2", *alone, *algorithm]
    config, data, warmups = prepared(*shared)
    run(Prepared(config, data, warmups), tmp_path / "one")
    groups = ["learner.num_workers=2", "discriminator.num_workers=2", f"learner.strategy={strategy}"]
    grouped, data, warmups = prepared(*shared, *groups, "weights.bucket_mib=1")
    placement = plan_placement(grouped, cluster_cpus=2, cluster_gpus=0, node_cpus=2)
    pad = data.tokenizer.pad_token_id
    sizes = {"max_tokens": data.task.max_tokens, "pad_token_id": pad}
    roles = RayRoles(warmups.generator, warmups.discriminator, grouped, placement, **sizes)
    try:
        assert roles.weights.num_parts > 2
        run(Prepared(grouped, data, warmups), tmp_path / "two", roles)
    finally:
        roles.close()
    agree(rows_of(tmp_path / "two"), rows_of(tmp_path / "one"))
    remove_checkpoint(tmp_path / "two", 4)
    run(Prepared(config, data, warmups), tmp_path / "two", resume=True)
    agree(rows_of(tmp_path / "two"), rows_of(tmp_path / "one"))


def agree(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    """Up to rounding, which can change a token that is drawn for an evaluation and with it the end of a response.

    One of the 40 responses of an evaluation moves a share by 0.025, and the gap closed, a quotient of two small
    differences of shares, by any amount. What training reports of its own batches agrees to 0.001, but for shares of
    tokens inside a clip (one in 384).
    """
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - {"eval/gap_closed"}:
            drawn = name.startswith(("eval/", "discriminator/held_out"))
            tolerance = 0.1 if drawn else 1e-2 if name.endswith("clip_fraction") else 1e-3
            assert ours[name] == pytest.approx(theirs[name], rel=0.1 if drawn else 1e-3, abs=tolerance), name


@pytest.mark.parametrize(
    "algorithm",
    [
        pytest.param([], id="reinforce"),
        pytest.param(AVERAGE, id="average", marks=pytest.mark.slow),
        pytest.param(STABILISED, id="stabilised", marks=pytest.mark.slow),
        pytest.param(PPO, id="ppo", marks=pytest.mark.slow),
        pytest.param(GUMBEL, id="gumbel", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(prepared, rows_of, tmp_path: Path, algorithm: list[str]) -> None:
    torch.set_num_threads(1)
    config, data, warmups = prepared("run.iterations=10", "checkpoint.every=5", "evaluation.every=5", *algorithm)
    whole = run(Prepared(config, data, warmups), tmp_path / "whole")
    # The same run, cut at 7 and taken up from the checkpoint of 5: what lies beyond it is thrown away.
    run(Prepared(config, data, warmups), tmp_path / "cut", stop_after=7)
    remove_checkpoint(tmp_path / "cut", 7)
    resumed = run(Prepared(config, data, warmups), tmp_path / "cut", resume=True)
    assert rows_of(tmp_path / "cut") == rows_of(tmp_path / "whole")
    assert resumed.samples_after == whole.samples_after


@pytest.mark.slow
def test_an_average_changes_what_is_evaluated_and_nothing_else(prepared, rows_of, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    for name, more in (("plain", ["generator.average_decay=0"]), ("averaged", AVERAGE)):
        config, data, warmups = prepared("run.iterations=6", "evaluation.every=3", *more)
        run(Prepared(config, data, warmups), tmp_path / name)
    plain, averaged = rows_of(tmp_path / "plain"), rows_of(tmp_path / "averaged")
    assert plain[0] == averaged[0]  # before any update
    evaluated = ("eval/", "quick/", "discriminator/held_out_auc", "discriminator/information")
    for ours, theirs in zip(plain, averaged, strict=True):
        assert [(n, v) for n, v in ours.items() if not n.startswith(evaluated)] == [
            (n, v) for n, v in theirs.items() if not n.startswith(evaluated)
        ]
    for row in (3, 6):
        assert plain[row]["eval/real_nll"] != averaged[row]["eval/real_nll"]
        assert plain[row]["eval/perplexity"] != averaged[row]["eval/perplexity"]


def remove_checkpoint(folder: Path, iteration: int) -> None:
    for file in sorted((folder / "checkpoints" / f"step_{iteration:06d}").rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    (folder / "checkpoints" / f"step_{iteration:06d}").rmdir()
