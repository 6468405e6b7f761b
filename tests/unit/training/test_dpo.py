"""Preference updates: DPO on the policy's own samples, SPIN and DITTO."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from rlgaf_ray.config import Config, load_config
from rlgaf_ray.data.collate import collate_sequences, demonstration_blocks
from rlgaf_ray.errors import UserError
from rlgaf_ray.models.generator import policy_logprobs
from rlgaf_ray.training.dpo import DirectPreference
from rlgaf_ray.training.learner import Learner
from rlgaf_ray.types import Demonstration, Metrics, Rollout, ScoredRollout, TextBlocks
from tests.unit.training.conftest import VOCABULARY

NUM_PROMPTS = 4


def config(*overrides: str) -> Config:
    small = ["rollout.batch_size=8", "rollout.samples_per_prompt=2", "learner.precision=float32"]
    small += ["rollout.stop_at_end_of_text=true", "generator.algorithm=dpo", "generator.average_decay=0"]
    return load_config(None, [*small, *overrides])


def responses(seed: int) -> list[np.ndarray]:
    """Two for each prompt, of one to four tokens."""
    generator = np.random.default_rng(seed)
    return [generator.integers(1, VOCABULARY, 1 + row % 4).astype(np.int32) for row in range(2 * NUM_PROMPTS)]


def prompt(row: int) -> np.ndarray:
    """Of the pair of rows, in two lengths."""
    pair = row // 2
    return np.array([3, 4, 20 + pair] if pair % 2 else [3, 20 + pair], np.int32)


def samples(seed: int) -> list[ScoredRollout]:
    return [
        ScoredRollout(
            Rollout(
                prompt_id=row // 2,
                prompt_ids=prompt(row),
                response_ids=ids,
                behaviour_logprobs=np.full(len(ids), -4.0, np.float32),
                finish_reason="stop",
                policy_version=seed,
            ),
            score=0.0,
            discriminator_version=0,
            reward=0.0,
        )
        for row, ids in enumerate(responses(seed))
    ]


DEMONSTRATIONS = [Demonstration(prompt(row), ids) for row, ids in enumerate(responses(99))]


def answers() -> TextBlocks:
    return demonstration_blocks(DEMONSTRATIONS)


def update(learner: Learner, iteration: int = 0) -> Metrics:
    return learner.update(samples(iteration), iteration=iteration, text=answers())


def by_hand(learner: Learner, beta: float, coefficient: float) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradient of one step, pair after pair."""
    policy, reference = learner.policy.model, learner.policy.reference

    def logprob(model: torch.nn.Module, item: Demonstration | Rollout) -> torch.Tensor:
        return policy_logprobs(model, collate_sequences([item], 0)).sum()  # type: ignore[arg-type]

    losses = []
    for real, sample in zip(DEMONSTRATIONS, samples(0), strict=True):
        own = [logprob(policy, item) for item in (real, sample.rollout)]
        with torch.no_grad():
            anchors = [logprob(reference, item) for item in (real, sample.rollout)]
        margin = beta * ((own[0] - anchors[0]) - (own[1] - anchors[1]))
        losses.append(-torch.nn.functional.logsigmoid(margin) - coefficient * own[0] / len(real.response_ids))
    loss = torch.stack(losses).mean()
    names, weights = zip(*policy.named_parameters(), strict=True)
    return loss.item(), dict(zip(names, torch.autograd.grad(loss, weights), strict=True))


@pytest.mark.parametrize("passes", ["micro_batch_size=64", "micro_batch_size=3", "micro_batch_tokens=24"])
def test_one_step_matches_the_hand_worked_loss(folder: Path, passes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    beta = "generator.dpo.kl.coefficient=0.3"
    settings = config(beta, "generator.dpo.demonstration_coefficient=0.2", f"learner.{passes}")
    learner = Learner(folder, settings, pad_token_id=0)
    with torch.no_grad():  # move away from the reference
        for weight in learner.policy.model.parameters():
            weight.mul_(1.1)
    loss, expected = by_hand(learner, beta=0.3, coefficient=0.2)
    gradients: dict[str, torch.Tensor] = {}

    def keep_gradients(iteration: int) -> Metrics:
        for name, weight in learner.policy.model.named_parameters():
            assert weight.grad is not None, name
            gradients[name] = weight.grad.clone()
        return {"skipped_steps": 0.0}

    monkeypatch.setattr(learner.policy, "step", keep_gradients)
    assert update(learner)["generator/loss"] == pytest.approx(loss, rel=1e-5)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-6)


def test_training_raises_the_preference_for_demonstrations(folder: Path) -> None:
    learner = Learner(folder, config("generator.learning_rate=1e-3"), pad_token_id=0)
    first, *_, last = [update(learner) for _ in range(8)]
    assert first["generator/loss"] == pytest.approx(math.log(2), abs=1e-5)  # policy and reference are equal
    assert first["generator/preference_margin"] == pytest.approx(0, abs=1e-5)
    assert last["generator/preference_accuracy"] == 1.0 and last["generator/loss"] < 0.5
    assert last["generator/preference_chosen_reward"] > 0 > last["generator/preference_rejected_reward"]
    assert last["generator/kl"] != 0


def test_self_play_uses_the_sampling_policy_as_reference(folder: Path) -> None:
    """SPIN: every iteration starts at a margin of zero, which later steps increase."""
    keys = ["generator.dpo.self_play=true", "generator.learning_rate=1e-3", "generator.learning_rate_schedule=constant"]
    learner = Learner(folder, config(*keys), pad_token_id=0)
    for iteration in range(3):
        assert update(learner, iteration)["generator/loss"] == pytest.approx(math.log(2), abs=1e-5)
    several = Learner(folder, config(*keys, "generator.dpo.epochs=4"), pad_token_id=0)
    assert update(several)["generator/loss"] < math.log(2) - 0.01


def test_earlier_samples_are_rejected_and_checkpointed(folder: Path, tmp_path: Path) -> None:
    """DITTO: pairs have the configured shares of the three kinds; the samples are in the checkpoint."""
    shares = ["generator.dpo.replay_share=0.3", "generator.dpo.between_share=0.2", "generator.dpo.replay_size=8"]
    learner = Learner(folder, config(*shares), pad_token_id=0)
    algorithm = learner.algorithm
    assert isinstance(algorithm, DirectPreference)
    now = [Demonstration(item.rollout.prompt_ids, item.rollout.response_ids) for item in samples(1)]
    drawn = np.random.default_rng(0)
    assert all(
        pair.chosen in DEMONSTRATIONS and pair.rejected in now for pair in algorithm.pairs(DEMONSTRATIONS, now, drawn)
    )
    update(learner)
    update(learner, iteration=7)
    assert len(algorithm.earlier.samples) == 8
    old = list(algorithm.earlier.samples)
    kinds = {"online": 0, "replay": 0, "between": 0}
    for _ in range(500):
        for row, pair in enumerate(algorithm.pairs(DEMONSTRATIONS, now, drawn)):
            if pair.rejected is now[row]:
                kind, chosen = "online", DEMONSTRATIONS[row]
            else:
                assert pair.rejected in old and np.array_equal(pair.rejected.prompt_ids, prompt(row))
                kind, chosen = ("between", now[row]) if pair.chosen is now[row] else ("replay", DEMONSTRATIONS[row])
            assert pair.chosen is chosen
            kinds[kind] += 1
    assert [count / 4000 for count in kinds.values()] == pytest.approx([0.5, 0.3, 0.2], abs=0.04)

    learner.save(tmp_path)
    again = Learner(folder, config(*shares), pad_token_id=0)
    again.load(tmp_path)
    assert again.algorithm.state_dict() == algorithm.state_dict()
    assert update(again, 8) == update(learner, 8)


def test_labelled_negatives_are_rejected_instead_of_samples(folder: Path) -> None:
    """Demonstrations then negatives; the samples do not change the update."""
    negatives = [Demonstration(prompt(row), ids) for row, ids in enumerate(responses(7))]
    text = demonstration_blocks([*DEMONSTRATIONS, *negatives])
    keys = ["generator.dpo.rejected=labels", "generator.learning_rate=1e-3"]
    learner, other = (Learner(folder, config(*keys), pad_token_id=0) for _ in range(2))
    first, *_, last = [learner.update(samples(step), iteration=step, text=text) for step in range(8)]
    assert first["generator/loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert last["generator/preference_accuracy"] == 1.0
    for step in range(8):
        again = other.update(samples(step + 50), iteration=step, text=text)
    assert again["generator/loss"] == pytest.approx(last["generator/loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        (
            ["generator.dpo.rejected=labels", "generator.dpo.between_share=0.4"],
            "generator.dpo.between_share is a share of pairs with the policy's own samples",
        ),
        (
            ["generator.dpo.replay_share=0.7", "generator.dpo.between_share=0.4"],
            "sum to more than 1: lower one of them",
        ),
        (["reward.discriminator_weight=0.5"], "remove reward.discriminator_weight"),
        (["reward.functions=[{path: 'my.py:f', weight: 1.0}]"], "learns from preference pairs and would ignore"),
        (["generator.entropy_bonus=0.1"], "remove generator.entropy_bonus"),
        (["generator.dpo.minibatches=9"], "exceeds rollout.batch_size=8"),
    ],
)
def test_settings_that_dpo_ignores_raise(keys: list[str], named: str) -> None:
    with pytest.raises(UserError, match=named):
        config(*keys)
