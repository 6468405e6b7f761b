"""The two runners over the same parts, and a run that is stopped and resumed."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch

from rlgaf_ray.actors.cluster import ray_session
from rlgaf_ray.actors.placement import plan_placement
from rlgaf_ray.actors.roles import RayRoles
from rlgaf_ray.actors.warmup import Warmups, prepare_warmups
from rlgaf_ray.config import Config
from rlgaf_ray.engines.build import build_engine
from rlgaf_ray.loop.adversarial import AdversarialLoop, Outcome
from rlgaf_ray.loop.checkpoint import Checkpoints
from rlgaf_ray.loop.local import LocalRoles
from rlgaf_ray.loop.tracking import Tracker
from rlgaf_ray.main import main
from rlgaf_ray.train import Data, prepare_data, prepare_evaluator
from rlgaf_ray.training.discriminator import Discriminator
from rlgaf_ray.training.learner import Learner

DOCUMENTED = set(
    re.findall(r"`([a-z]+/[a-z0-9_]+)`", (Path(__file__).parents[2] / "docs" / "metrics.md").read_text())
)
PPO = ["generator.algorithm=ppo", "generator.ppo.critic_warmup_iterations=2", "generator.ppo.pretraining_coefficient=0.1"]


class Silent:
    def iteration(self, iteration: int, metrics: dict[str, float]) -> None: ...

    def message(self, text: str) -> None: ...


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


def local_roles(config: Config, data: Data, warmups: Warmups) -> LocalRoles:
    pad, end = data.tokenizer.pad_token_id, data.tokenizer.eos_token_id
    return LocalRoles(
        build_engine(warmups.generator, config),
        Discriminator(warmups.discriminator, config, pad_token_id=pad),
        Learner(warmups.generator, config, pad_token_id=pad, end_of_text_id=end),
    )


def run(config: Config, data: Data, cache: Path, roles, folder: Path, *, resume: bool = False) -> tuple[Outcome, list]:
    folder.mkdir(exist_ok=True)
    checkpoints = Checkpoints(folder / "checkpoints", keep=3)
    path, state, _ = checkpoints.newest_usable() if resume else (None, {"iteration": 0}, [])
    tracker = Tracker(folder, config.tracking, data.tokenizer, start=state["iteration"])
    evaluator = prepare_evaluator(config, data, cache)
    loop = AdversarialLoop(config, roles, data.task, evaluator, tracker, checkpoints, Silent())
    if path is not None:
        loop.resume(path, state)
    outcome = loop.run()
    tracker.close()
    return outcome, without_time(tracker.rows())


def without_time(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    timed = ("time/", "weights/load_seconds", "rollout/tokens_per_second", "rollout/samples_per_second")
    return [{name: value for name, value in row.items() if not name.startswith(timed)} for row in rows]


@pytest.mark.parametrize("algorithm", [[], PPO], ids=["reinforce", "ppo"])
def test_local_and_ray_runners_agree_step_for_step(prepared, cache: Path, tmp_path: Path, algorithm: list[str]) -> None:
    config, data, warmups = prepared("run.iterations=6", *algorithm)
    torch.set_num_threads(1)
    _, local = run(config, data, cache, local_roles(config, data, warmups), tmp_path / "local")
    placement = plan_placement(config, cluster_cpus=2, cluster_gpus=0, node_cpus=2)
    pad, end = data.tokenizer.pad_token_id, data.tokenizer.eos_token_id
    roles = RayRoles(
        warmups.generator, warmups.discriminator, config, placement, pad_token_id=pad, end_of_text_id=end
    )
    try:
        _, on_ray = run(config, data, cache, roles, tmp_path / "ray")
    finally:
        roles.close()
    assert len(local) == 7
    for ours, theirs in zip(local, on_ray, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-6)
    logged = {name for row in local for name in row} - {"iteration"}
    assert logged <= DOCUMENTED
    assert all(math.isfinite(value) for row in local for value in row.values())


@pytest.mark.parametrize("algorithm", [[], PPO], ids=["reinforce", "ppo"])
def test_a_resumed_run_equals_an_uninterrupted_one(prepared, cache: Path, tmp_path: Path, algorithm: list[str]) -> None:
    torch.set_num_threads(1)
    config, data, warmups = prepared("run.iterations=10", "checkpoint.every=5", "evaluation.every=5", *algorithm)
    whole, expected = run(config, data, cache, local_roles(config, data, warmups), tmp_path / "whole")
    # The same run, cut at 5: what lies beyond the checkpoint is thrown away, as after a kill at iteration 7.
    cut = config.model_copy(update={"run": config.run.model_copy(update={"iterations": 7})})
    run(cut, data, cache, local_roles(cut, data, warmups), tmp_path / "cut")
    remove_checkpoint(tmp_path / "cut", 7)
    resumed, found = run(config, data, cache, local_roles(config, data, warmups), tmp_path / "cut", resume=True)
    assert found == expected
    assert resumed.samples_after == whole.samples_after


def remove_checkpoint(folder: Path, iteration: int) -> None:
    for file in sorted((folder / "checkpoints" / f"step_{iteration:06d}").rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    (folder / "checkpoints" / f"step_{iteration:06d}").rmdir()


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(small, tmp_path: Path, capsys) -> None:
    assert main(small("run.name=damaged", "rollout.engine=transformers")) == 0
    folder = tmp_path / "damaged"
    expected = without_time(read_rows(folder))
    with (folder / "checkpoints/step_000008/learner/generator/model.safetensors").open("r+b") as file:
        file.seek(5000)
        file.write(b"\0\0\0\1")
    capsys.readouterr()
    assert main([*small("run.name=damaged"), "--resume", "rollout.engine=transformers"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "damaged checkpoint passed over" in said
    assert "learner/generator/model.safetensors is not what was written" in said
    assert "step_000004" in said
    assert without_time(read_rows(folder)) == expected


def read_rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
