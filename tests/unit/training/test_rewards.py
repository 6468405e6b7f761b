"""Whitened and clipped rewards, the entropy bonus and the adaptive KL as the learner uses them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rlgaf_ray.config import load_config
from rlgaf_ray.config.algorithm import KLSettings
from rlgaf_ray.data.collate import collate
from rlgaf_ray.models.generator import build_tiny_gpt2
from rlgaf_ray.training.learner import Learner
from rlgaf_ray.training.policy import KLController
from rlgaf_ray.training.rewards import RewardShaping
from rlgaf_ray.types import Rollout, ScoredRollout

VOCABULARY = 32


SEQUENCE = "generator.reinforce.credit=sequence"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    build_tiny_gpt2(vocab_size=VOCABULARY, end_of_text_id=0, seed=3).save_pretrained(path)
    return path


@pytest.fixture
def build(folder: Path):
    def make(*overrides: str) -> Learner:
        small = ["rollout.batch_size=4", "rollout.samples_per_prompt=4", "learner.precision=float32"]
        return Learner(folder, load_config(None, [*small, SEQUENCE, *overrides]), pad_token_id=0)

    return make


def scored(rewards: list[float], *, values: list[float] | None = None) -> list[ScoredRollout]:
    generator = np.random.default_rng(0)
    return [
        ScoredRollout(
            rollout=Rollout(
                prompt_id=0,
                prompt_ids=np.array([3, 4], np.int32),
                response_ids=generator.integers(1, VOCABULARY, 2).astype(np.int32),
                behaviour_logprobs=np.array([-1.0 - row, -0.5], np.float32),
                finish_reason="stop",
                policy_version=0,
            ),
            score=reward,
            discriminator_version=0,
            reward=reward,
            action_values=None if values is None else np.array([values[row], reward], np.float32),
        )
        for row, reward in enumerate(rewards)
    ]


def shape(shaping: RewardShaping, rewards: list[float], values: list[float] | None = None):
    batch = collate(scored(rewards, values=values), 0, len(rewards))
    return shaping(torch.tensor(rewards), batch)


def test_rewards_are_unchanged_by_default() -> None:
    rewards, batch, metrics = shape(RewardShaping(load_config().reward), [1.0, 2.0], [5.0, 6.0])
    assert (rewards.tolist(), metrics) == ([1.0, 2.0], {})
    assert batch.action_values is not None and batch.action_values[:, 2:].tolist() == [[5.0, 1.0], [6.0, 2.0]]


def test_whitening_by_running_statistics_then_clipping() -> None:
    shaping = RewardShaping(load_config(None, [SEQUENCE, "reward.whiten=true", "reward.clip=1.5"]).reward)
    first, _, metrics = shape(shaping, [1.0, 3.0])  # mean 2, deviation 1
    assert (first.tolist(), metrics) == ([-1.0, 1.0], {"reward/clipped_share": 0.0})
    # 1, 3, 2, 10: mean 4, deviation sqrt((9 + 1 + 4 + 36) / 4) = 3.5355339
    second, batch, metrics = shape(shaping, [2.0, 10.0], values=[4.0, -6.0])
    assert second.tolist() == pytest.approx([-2 / 3.5355339, 1.5])
    assert metrics == {"reward/clipped_share": 0.5}
    assert batch.action_values is not None
    assert batch.action_values[:, 2:].flatten().tolist() == pytest.approx([0.0, -2 / 3.5355339, -1.5, 1.5], abs=1e-6)
    assert not batch.action_values[:, :2].any()


def test_the_statistics_are_part_of_the_checkpoint(build, tmp_path: Path) -> None:
    first = build("reward.whiten=true")
    first.update(scored([1.0, 3.0, 2.0, 0.0]), iteration=0)
    first.save(tmp_path)
    second = build("reward.whiten=true")
    second.load(tmp_path)
    assert second.rewards.statistics.state_dict() == {"count": 4, "mean": 1.5, "sum_of_squares": 5.0}


@pytest.mark.parametrize(("weight", "expected"), [(0.5, 6.5**0.5), (0.0, 2.0)])
def test_token_credit_scales_with_the_discriminators_weight(folder: Path, weight: float, expected: float) -> None:
    """Token scores (3, 1) and (1, 1); a reward function returns 2 and 0 for the responses.

    Weight 0.5: returns (4, 4 - 1.5) and (1, 1 - 0.5), each the other's baseline. Weight 0: (2, 2) and (0, 0).
    """
    words = ["rollout.batch_size=2", "rollout.samples_per_prompt=2", "learner.precision=float32"]
    words += ["generator.reinforce.advantage_scale=none", f"reward.discriminator_weight={weight}"]
    learner = Learner(folder, load_config(None, words), pad_token_id=0)
    items = [
        replace(item, reward=weight * sum(parts) + whole, token_scores=np.array(parts, np.float32))
        for item, parts, whole in zip(scored([4.0, 2.0]), ([3.0, 1.0], [1.0, 1.0]), (2.0, 0.0), strict=True)
    ]
    assert learner.update(items, iteration=0)["generator/advantage_deviation"] == pytest.approx(expected)


def test_whitened_rewards_keep_their_scale_relative_to_the_kl(build) -> None:
    """Rewards of a hundred times the spread give the same advantages after whitening."""
    plain = ["generator.reinforce.advantage_scale=none", "generator.reinforce.kl.coefficient=0"]
    deviations = {}
    for spread in (1.0, 100.0):
        for whiten in ("false", "true"):
            learner = build(*plain, f"reward.whiten={whiten}")
            metrics = learner.update(scored([spread * reward for reward in (1.0, 3.0, 2.0, 0.0)]), iteration=0)
            assert metrics["reward/deviation"] == pytest.approx(spread * 1.1180340)  # before whitening
            deviations[spread, whiten] = metrics["generator/advantage_deviation"]
    assert deviations[100.0, "false"] == pytest.approx(100 * deviations[1.0, "false"])
    assert deviations[100.0, "true"] == pytest.approx(deviations[1.0, "true"])


def test_reinforce_is_rewarded_for_unlikely_tokens(build) -> None:
    learner = build(
        "generator.entropy_bonus=0.1",
        "generator.reinforce={credit: sequence, baseline: none, advantage_scale: none, kl: {coefficient: 0.0}}",
    )
    metrics = learner.update(scored([0.0] * 4), iteration=0)
    # -log pi of the two tokens: 1 + row and 0.5; to go: 1.5 + row and 0.5
    expected = 0.1 * np.std([1.5, 2.5, 3.5, 4.5, 0.5, 0.5, 0.5, 0.5])
    assert metrics["generator/advantage_deviation"] == pytest.approx(expected, rel=1e-5)


def test_ppo_is_rewarded_for_unlikely_tokens(build) -> None:
    learner = build(
        "generator.algorithm=ppo",
        "generator.entropy_bonus=0.1",
        "generator.ppo={whiten_rewards: false, whiten_advantages: false, gae_lambda: 1.0, kl: {coefficient: 0.0}}",
    )
    items = scored([0.0] * 4)
    with torch.no_grad():
        sequences = collate(items, 0, 4).sequences
        logprobs = learner.policy.logprobs(sequences)[:, 2:]
    to_go = torch.stack([-logprobs.sum(1), -logprobs[:, 1]], 1)
    metrics = learner.update(items, iteration=0)
    assert metrics["generator/advantage_deviation"] == pytest.approx(0.1 * float(to_go.std(correction=0)), rel=1e-4)


def test_the_adaptive_kl_follows_its_target(build, tmp_path: Path) -> None:
    """The coefficient falls by 0.2 x samples / horizon per update below the target, and rises by it above."""
    settings = [
        "generator.learning_rate=1e-3",
        "generator.learning_rate_schedule=constant",
        "generator.reinforce={credit: sequence, baseline: none, kl: {coefficient: 0.1, target: 0.05, horizon: 40}}",
    ]
    learner, coefficient, seen = build(*settings), 0.1, set()
    for iteration in range(30):
        metrics = learner.update(scored([1.0] * 4), iteration=iteration)  # raises the likelihood of all
        assert metrics["generator/kl_coefficient"] == pytest.approx(coefficient)
        error = min(max(metrics["generator/kl_exact"] / 0.05 - 1, -0.2), 0.2)
        coefficient *= 1 + error * 4 / 40
        seen.add(float(np.sign(error)))
    assert seen == {-1.0, 1.0}
    learner.save(tmp_path)
    again = build(*settings)
    again.load(tmp_path)
    assert again.algorithm.kl.coefficient == pytest.approx(coefficient)


def test_a_non_finite_kl_does_not_change_the_coefficient() -> None:
    controller = KLController(KLSettings(coefficient=0.1, target=0.05))
    controller.observe(float("nan"), 64)
    assert controller.coefficient == 0.1
    controller.observe(1.0, 64)
    assert controller.coefficient > 0.1
