"""Batches and groups of one train to finite numbers; tests/unit/config has those that are refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

import rlgaf_ray as rl
from tests.integration.test_api import small_run

ONE = ["rollout.batch_size=1", "rollout.samples_per_prompt=1", "discriminator.batch_size=1"]
NO_BASELINE = {"baseline": "none", "advantage_scale": "none"}


@pytest.mark.parametrize(
    "algorithm",
    [
        [f"generator.reinforce.{name}={value}" for name, value in NO_BASELINE.items()],
        ["generator.algorithm=ppo", "generator.ppo.minibatches=1"],
        pytest.param(["generator.algorithm=gumbel"], marks=pytest.mark.slow),
        pytest.param(
            [
                "generator.algorithm=seqgan",
                "generator.seqgan.num_completions=1",
                *(f"generator.seqgan.{name}={value}" for name, value in NO_BASELINE.items()),
            ],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["reinforce", "ppo", "gumbel", "seqgan"],
)
def test_one_rollout_is_a_batch(tmp_path: Path, algorithm: list[str]) -> None:
    torch.set_num_threads(1)
    config = small_run(tmp_path, *ONE, "run.iterations=2", *algorithm)
    outcome = rl.train(config, roles="local")
    assert outcome.iteration == 2
    rows = [json.loads(line) for line in (tmp_path / "api/metrics.jsonl").read_text().splitlines()]
    assert all(row.get("generator/non_finite", 0) == 0 for row in rows)
    values = [value for row in rows for value in row.values()]
    assert all(value is not None and math.isfinite(value) for value in values)
