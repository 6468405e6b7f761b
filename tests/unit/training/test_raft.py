"""Rejection fine-tuning: selection of samples and the update on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rlgaf_ray.config import Config, load_config
from rlgaf_ray.data.collate import collate_sequences, demonstration_blocks
from rlgaf_ray.errors import UserError
from rlgaf_ray.models.generator import policy_logprobs
from rlgaf_ray.training.learner import Learner
from rlgaf_ray.training.raft import best_of_groups
from rlgaf_ray.types import Demonstration
from tests.unit.training.test_updates import REWARDS, scored


def config(*overrides: str) -> Config:
    small = ["rollout.batch_size=8", "rollout.samples_per_prompt=4", "learner.precision=float32"]
    small += ["rollout.stop_at_end_of_text=true", "generator.algorithm=raft", "generator.average_decay=0"]
    return load_config(None, [*small, *overrides])


def test_the_best_of_each_prompt_is_kept() -> None:
    rewards = torch.tensor([0.0, 3.0, 1.0, -2.0, -1.0, -1.0])
    assert best_of_groups(rewards, 3).tolist() == [1, 4]
    assert best_of_groups(rewards, 2).tolist() == [1, 2, 4]
    assert best_of_groups(rewards, 6).tolist() == [1]


@pytest.mark.parametrize("passes", ["micro_batch_size=64", "micro_batch_size=1"])
def test_the_loss_is_the_nll_of_the_kept_samples(folder: Path, passes: str) -> None:
    learner = Learner(folder, config(f"learner.{passes}"), pad_token_id=0)
    items = scored(REWARDS)  # the best are rows 0 and 7
    kept = collate_sequences([items[row].rollout for row in (0, 7)], 0)
    with torch.no_grad():
        expected = -policy_logprobs(learner.policy.model, kept).sum() / kept.response_mask.sum()
    metrics = learner.update(items, iteration=0)
    assert metrics["generator/loss"] == pytest.approx(float(expected), rel=1e-5)
    mean = sum(REWARDS) / len(REWARDS)
    assert metrics["generator/selection_gain"] == pytest.approx((1.0 + 1.2) / 2 - mean, rel=1e-5)


def test_kept_samples_gain_likelihood_and_the_kl_limits_it(folder: Path) -> None:
    items, moved = scored(REWARDS), {}
    for coefficient in (0, 20):
        keys = ["generator.raft.epochs=10", "generator.learning_rate=1e-3"]
        learner = Learner(folder, config(*keys, f"generator.raft.kl.coefficient={coefficient}"), pad_token_id=0)
        kept = [items[row].rollout for row in (0, 7)]
        before = learner.mean_nll(kept, model="policy")
        learner.update(items, iteration=0)
        moved[coefficient] = before - learner.mean_nll(kept, model="policy")
    assert moved[0] > 0.5 and moved[0] > moved[20] > 0


def test_each_step_uses_as_many_demonstrations_as_selected_samples(folder: Path) -> None:
    """The best are rows 0 and 7, so of the eight demonstrations these two."""
    learner = Learner(folder, config("generator.raft.demonstration_coefficient=1"), pad_token_id=0)
    items = [Demonstration(np.array([1, 2], np.int32), np.array([3 + row, 4], np.int32)) for row in range(8)]
    kept = collate_sequences([items[row] for row in (0, 7)], 0)
    with torch.no_grad():
        expected = -policy_logprobs(learner.policy.model, kept).sum() / kept.response_mask.sum()
    metrics = learner.update(scored(REWARDS), iteration=0, text=demonstration_blocks(items))
    assert metrics["generator/demonstration_loss"] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        (["rollout.samples_per_prompt=1"], "set it to 2 or more"),
        (["generator.raft.minibatches=3"], "exceeds the 2 selected samples"),
        (["generator.entropy_bonus=0.1"], "remove generator.entropy_bonus"),
    ],
)
def test_incompatible_settings_raise(keys: list[str], named: str) -> None:
    with pytest.raises(UserError, match=named):
        config(*keys)
