"""Every preset runs: two iterations of its small form, cut down further, on its real data."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch

from rlgaf_ray.actors.cluster import ray_session
from rlgaf_ray.actors.warmup import prepare_warmups
from rlgaf_ray.config import Config, load_config, with_values
from rlgaf_ray.run.preparation import Prepared, prepare_data
from rlgaf_ray.types import Metrics
from tests.integration.local_run import run

ROOT = Path(__file__).parents[2]
DOCUMENTED = set(re.findall(r"`([a-z]+/[a-z0-9_]+)`", (ROOT / "docs" / "metrics.md").read_text()))
SQUAD = ROOT.parent / "shared" / "data" / "squad" / "dev-v2.0.json.gz"
SHORT = [
    "run.iterations=2",
    "rollout.engine=transformers",
    "rollout.batch_size=8",
    "warmup.generator.steps=4",
    "warmup.generator.batch_size=4",
    "warmup.sft.steps=2",
    "warmup.discriminator.steps=2",
    "warmup.discriminator.batch_size=8",
    "discriminator.batch_size=8",
    "discriminator.updates_per_generator_update=1",
    "evaluation.num_prompts=20",
    "evaluation.num_samples=2",
    "cluster.threads=1",
]
IMDB = [
    "task.response_tokens=12",
    "task.imdb.splits={base: 400, demonstrations: 600, judge_validation: 300, judge_test: 300, validation: 120, "
    "test: 120}",
]
SIZES = {
    "imdb": IMDB,
    "bridge": [
        "rollout.batch_size=32",
        "task.bridge={base_walks: 100, validation: 40, test: 40}",
        "evaluation.every=1",
    ],
}
ANSWERS = ["task.squad.source=path", f"task.squad.path={SQUAD}", "task.squad.max_rows=8000"]


@pytest.fixture(scope="module")
def ray_cluster():
    with ray_session(Config()):
        yield


@pytest.mark.parametrize(
    "path",
    sorted(path for folder in (".", "ablations", "recipes") for path in (ROOT / "configs" / folder).glob("*.yaml")),
    ids=lambda path: path.stem,
)
def test_a_preset_runs(path: Path, ray_cluster, cache: Path, tmp_path: Path) -> None:
    preset = path.parent.name != "ablations" and path.stem not in ("default", "labelled", "bridge")
    task = load_config(path).task.name
    if task == "squad" and not SQUAD.is_file():
        pytest.skip("needs the official SQuAD files in ../shared/data/squad")
    config = load_config(path, [*SHORT, *SIZES.get(task, ANSWERS)], small=preset)
    two_iterations(config, cache, tmp_path)


def test_demonstrations_of_ones_own_run(ray_cluster, cache: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"{a} and {b} make", "response": f" {a + b}."} for a in range(20) for b in range(20)]
    path = tmp_path / "sums.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    task = ["task.name=jsonl", f"task.jsonl.path={path}", "task.prompt_tokens=16", "task.response_tokens=6"]
    metrics = two_iterations(load_config(None, [*SHORT, *task, "model.generator=tiny-gpt2"]), cache, tmp_path)
    assert 0 <= metrics["eval/f1"] <= 100
    assert "eval/in_context_share" not in metrics


@pytest.mark.slow
def test_a_model_from_scratch_starts_from_sft_by_cross_validation(ray_cluster, cache: Path, tmp_path: Path) -> None:
    sft = "warmup.sft={steps: auto, max_steps: 25, batch_size: 8}"
    config = load_config(None, [*SHORT, *IMDB, "model.generator=tiny-gpt2", sft])
    metrics = two_iterations(config, cache, tmp_path)
    assert metrics["discriminator/held_out_auc"] > 0


def two_iterations(config: Config, cache: Path, folder: Path) -> Metrics:
    torch.set_num_threads(1)
    config = with_values(config, {"warmup.cache": str(cache)})
    data = prepare_data(config, cache)
    warmups = prepare_warmups(config, data.task, data.tokenizer, cache, lambda name, progress: None)
    outcome = run(Prepared(config, data, warmups), folder / "run")
    assert not outcome.interrupted
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row.pop("iteration") for row in rows] == [0, 1, 2]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert {name for row in rows for name in row} <= DOCUMENTED
    assert config.best_metric in outcome.last
    nll = "eval/real_nll"  # unlike a few samples, it shows any change of the weights
    assert outcome.first[nll] != outcome.last[nll] or config.generator.algorithm == "ppo"
    return outcome.last
