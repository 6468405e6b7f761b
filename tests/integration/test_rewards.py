"""Runs in one process that learn from reward functions, with the discriminator frozen and its reward logged only."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

import rlgaf_ray as rl
from tests.integration.test_api import small_run

ALONE = [
    "run.iterations=24",
    "rollout.batch_size=16",
    "reward.discriminator_weight=0",
    "discriminator.updates_per_generator_update=0",
    "warmup.discriminator.steps=0",
    "generator.learning_rate=2e-3",
    "generator.learning_rate_schedule=constant",
    "generator.reinforce.demonstration_coefficient=0",
    "generator.reinforce.kl.coefficient=0.01",
    "evaluation.every=0",
    "evaluation.quick_every=0",
    "checkpoint.every=0",
]
CREDIT = {
    "token": [],
    "sequence": ["generator.reinforce.credit=sequence", "generator.reinforce.baseline=leave_one_out"],
}
CODE = """
def share(completions, **columns):
    return [text.count("o") / max(1, len(text)) for text in completions]
"""


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def mean(rows: list[dict[str, Any]], name: str) -> float:
    return sum(row[name] for row in rows) / len(rows)


@pytest.mark.parametrize("credit", CREDIT)
def test_an_own_reward_for_a_letter_rises(tmp_path: Path, credit: str) -> None:
    torch.set_num_threads(1)
    (tmp_path / "my_rewards.py").write_text(CODE)
    function = f"reward.functions=[{{path: '{tmp_path}/my_rewards.py:share', name: letter}}]"
    outcome = rl.train(small_run(tmp_path, *ALONE, *CREDIT[credit], function), roles="local")
    found = rows(tmp_path / "api")[1:]
    print([round(row["reward/letter"], 3) for row in found])
    assert mean(found[-4:], "reward/letter") > 2 * mean(found[:4], "reward/letter")
    assert all(row["reward/mean"] == pytest.approx(row["reward/letter"]) for row in found)
    assert len({row["reward/discriminator"] for row in found}) > 1  # logged, of a discriminator that did not move
    assert outcome.iteration == 24
