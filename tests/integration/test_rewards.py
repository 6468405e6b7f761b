"""Runs in one process that learn from reward functions, with the discriminator frozen and its reward logged only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

import rlgaf_ray as rl
from tests.integration.test_api import small_run

FUNCTIONS_ONLY = [
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
    outcome = rl.train(small_run(tmp_path, *FUNCTIONS_ONLY, *CREDIT[credit], function), roles="local")
    found = rows(tmp_path / "api")[1:]
    assert mean(found[-4:], "reward/letter") > 2 * mean(found[:4], "reward/letter")
    assert all(row["reward/mean"] == pytest.approx(row["reward/letter"]) for row in found)
    assert len({row["reward/discriminator"] for row in found}) > 1  # logged, of a discriminator that did not move
    assert outcome.iteration == 24


def test_a_function_that_fails_ends_the_run_behind_a_saved_iteration(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    steps: list[int] = []

    def flaky(prompts: list[str], completions: list[str], response: list[str], trainer_state: Any) -> list[float]:
        assert all(prompt.startswith("what is") for prompt in prompts), "the data's own prompts"
        assert all(text.startswith("it is") for text in response), "a column of the data"
        steps.append(trainer_state.global_step)
        if len(steps) == 2:
            raise KeyError("quota")
        return [float(len(text)) for text in completions]

    quiet = ["run.iterations=3", "evaluation.every=0", "evaluation.quick_every=0", "checkpoint.every=0"]
    config = small_run(tmp_path, *quiet, "warmup.discriminator.steps=0", "discriminator.updates_per_generator_update=0")
    with pytest.raises(rl.UserError) as caught:
        rl.train(config, roles="local", rewards={"discriminator": 0.5, flaky: 0.1})
    line = str(caught.value)
    assert line.startswith("reward function flaky raised KeyError: 'quota' (test_rewards.py:")
    assert "the last checkpoint, step_000001, is intact: continue with --resume" in line and "\n" not in line
    assert isinstance(caught.value.__cause__, rl.UserError) and isinstance(caught.value.__cause__.__cause__, KeyError)

    again = rl.load_config(tmp_path / "api" / "config.yaml")
    with pytest.raises(rl.UserError, match="flaky was passed as an argument and has no path: pass it again"):
        rl.train(again, resume=True, roles="local")
    rl.train(again, resume=True, roles="local", rewards={flaky: 0.1})
    assert steps == [0, 1, 1, 2]
    assert [row["iteration"] for row in rows(tmp_path / "api")] == [0, 1, 2, 3]
    table = pq.read_table(tmp_path / "api" / "rollouts" / "000003.parquet").to_pydict()
    for reward, score, value in zip(table["reward"], table["score"], table["reward/flaky"], strict=True):
        assert reward == pytest.approx(0.5 * score + 0.1 * value, rel=1e-5, abs=1e-6)
