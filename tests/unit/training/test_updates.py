"""Edge cases of updates: one rollout, several clipped steps, off-policy tokens, learning-rate schedules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rlgaf_ray.config import Config, load_config
from rlgaf_ray.data.collate import collate
from rlgaf_ray.loop.non_finite import broken
from rlgaf_ray.training.learner import Learner
from rlgaf_ray.training.neural_discriminator import NeuralDiscriminator
from rlgaf_ray.types import Demonstration, Rollout, ScoredRollout

VOCABULARY = 64
SEQUENCE = "generator.reinforce.credit=sequence"
CLIPPED = [SEQUENCE, "generator.reinforce.clip_range=0.2"]
REWARDS = [1.0, -1.0, 0.5, 0.0, -2.0, 0.3, 0.1, 1.2]


def config(*overrides: str) -> Config:
    small = ["rollout.batch_size=8", "rollout.samples_per_prompt=4", "learner.precision=float32"]
    return load_config(None, [*small, *overrides])


def scored(rewards: list[float], length: int | None = None) -> list[ScoredRollout]:
    """Responses of one to four tokens not sampled from the policy, with the full score on the last token."""
    generator = np.random.default_rng(0)
    lengths = [length or 1 + row % 4 for row in range(len(rewards))]
    return [
        ScoredRollout(
            Rollout(
                prompt_id=row // 4,
                prompt_ids=np.array([3, 4], np.int32),
                response_ids=generator.integers(1, VOCABULARY, count).astype(np.int32),
                behaviour_logprobs=np.full(count, -4.0, np.float32),
                finish_reason="stop",
                policy_version=0,
            ),
            reward,
            0,
            reward,
            token_scores=np.eye(count, dtype=np.float32)[-1] * reward,
        )
        for row, (reward, count) in enumerate(zip(rewards, lengths, strict=True))
    ]


@pytest.mark.parametrize("algorithm", ["reinforce", "ppo"])
def test_a_batch_of_one_token_is_finite(folder: Path, algorithm: str) -> None:
    """The deviation of a single value is zero; a NaN would make the guard stop the run."""
    one = ["rollout.batch_size=1", "rollout.samples_per_prompt=1", f"generator.algorithm={algorithm}"]
    plain = "generator.reinforce={baseline: none, advantage_scale: none}"
    learner = Learner(folder, config(*one, plain, "generator.ppo.minibatches=1"), pad_token_id=0)
    metrics = learner.update(scored([0.7], length=1), iteration=9)
    assert not broken(metrics) and metrics["reward/deviation"] == metrics["generator/advantage_deviation"] == 0
    assert metrics["generator/grad_norm"] > 0 or algorithm == "ppo"  # PPO whitens the single reward to zero


@pytest.mark.parametrize("estimator", ["exact", "k3"])
@pytest.mark.parametrize("steps", [[], [*CLIPPED, "generator.reinforce.minibatches=2"]])
def test_entropy_and_kl_add_up_to_the_nll_under_the_reference(folder: Path, estimator: str, steps: list[str]) -> None:
    """Also on tokens sampled by another policy, as in an asynchronous run."""
    nothing_masked = "rollout.stop_at_end_of_text=true"
    estimated = f"generator.reinforce.kl.estimator={estimator}"
    learner = Learner(folder, config(estimated, nothing_masked, *steps), pad_token_id=0)
    with torch.no_grad():
        for weight in learner.policy.model.parameters():
            weight.mul_(1.3)
    items = scored(REWARDS)
    rollouts = [item.rollout for item in items]
    policy, reference = (learner.mean_nll(rollouts, model=model) for model in ("policy", "reference"))
    assert abs(policy - reference) > 0.01
    metrics = learner.update(items, iteration=0)
    assert metrics["generator/entropy"] == pytest.approx(policy, abs=1e-5)
    assert metrics["generator/entropy"] + metrics["generator/kl"] == pytest.approx(reference, abs=1e-5)
    assert ("generator/kl_exact" in metrics) == (estimator == "exact")
    if estimator == "exact":
        assert metrics["generator/kl_exact"] > 0 and metrics["generator/kl_exact"] != metrics["generator/kl"]


def test_one_clipped_step_is_reinforce(folder: Path) -> None:
    """The ratio is one, so no forward pass is spent on the old log-probs."""
    norms = [
        Learner(folder, config(*settings), pad_token_id=0).update(scored(REWARDS), iteration=0)["generator/grad_norm"]
        for settings in ([SEQUENCE], CLIPPED)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_several_steps_leave_the_old_policy_until_clipped(folder: Path, ratio: str) -> None:
    steps = ["epochs=6", "minibatches=3", f"ratio={ratio}", "kl.coefficient=0", "clip_range_high=0.3"]
    settings = [*CLIPPED, *(f"generator.reinforce.{key}" for key in steps), "generator.learning_rate=3e-3"]
    learner = Learner(folder, config(*settings, "generator.max_grad_norm=1e9"), pad_token_id=0)
    metrics = learner.update(scored(REWARDS), iteration=0)
    assert metrics["generator/clip_fraction"] > 0.05
    assert metrics["generator/approximate_kl"] > 0
    assert metrics["generator/kl"] == pytest.approx(0, abs=1e-6)  # before the first step
    assert next(iter(learner.policy.optimizer.state.values()))["step"] == 18
    again = Learner(folder, config(*settings, "generator.max_grad_norm=1e9"), pad_token_id=0)
    assert again.update(scored(REWARDS), iteration=0) == metrics
    assert again.update(scored(REWARDS), iteration=1) != metrics


def test_the_kl_coefficient_is_fixed_during_critic_warmup(folder: Path) -> None:
    """It has no effect while only PPO's critic trains."""
    adaptive = "generator.ppo={critic_warmup_iterations: 2, kl: {coefficient: 0.1, target: 0.05, horizon: 40}}"
    learner = Learner(folder, config("generator.algorithm=ppo", adaptive), pad_token_id=0)
    used = [learner.update(scored(REWARDS), iteration=step)["generator/kl_coefficient"] for step in range(4)]
    assert used[:3] == [0.1, 0.1, 0.1] and used[3] == pytest.approx(0.1 * (1 - 0.2 * 8 / 40))


def test_the_critics_learning_rate_follows_schedule_and_rollback(folder: Path) -> None:
    schedule = ["run.iterations=4", "generator.ppo.value_learning_rate_schedule=linear"]
    learner = Learner(folder, config("generator.algorithm=ppo", *schedule), pad_token_id=0)

    def rate(iteration: int) -> float:
        return learner.update(scored(REWARDS), iteration=iteration)["generator/critic_learning_rate"]

    assert [rate(0), rate(3)] == [1e-4, pytest.approx(2.5e-5)]
    assert learner.algorithm.networks()["critic"].optimizer.param_groups[0]["lr"] == pytest.approx(2.5e-5)
    learner.adjust(learning_rate_factor=0.5)
    assert rate(2) == pytest.approx(2.5e-5)
    learner.adjust(learning_rate_factor=0.25)  # applies to the configured rate, not the last one
    assert rate(0) == pytest.approx(2.5e-5)


def test_the_discriminators_learning_rate_schedule_counts_its_updates(folder: Path, tmp_path: Path) -> None:
    """Ten iterations at 0.4 updates each are four updates, after two of the warm-up."""
    settings = config(
        "run.iterations=10",
        "warmup.discriminator.steps=2",
        "discriminator.updates_per_generator_update=0.4",
        "discriminator.learning_rate_schedule=linear",
        "discriminator.learning_rate=1e-3",
    )
    real = [Demonstration(np.array([3, 4], np.int32), np.array([5, 6, 7], np.int32))] * 8
    fake = [item.rollout for item in scored(REWARDS)]
    discriminator = NeuralDiscriminator(folder, settings, pad_token_id=0)
    rates = [discriminator.update(real, fake)["discriminator/learning_rate"] for _ in range(5)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-3, 7.5e-4, 5e-4])
    assert discriminator.optimizer.param_groups[0]["lr"] == pytest.approx(5e-4)
    discriminator.save(tmp_path)
    again = NeuralDiscriminator(folder, settings, pad_token_id=0)
    again.load(tmp_path, version=5)
    again.adjust(learning_rate_factor=0.5)
    assert again.update(real, fake)["discriminator/learning_rate"] == pytest.approx(1.25e-4)


def test_the_learner_knows_the_tokens_outside_the_view(folder: Path) -> None:
    """A final end of text (0) is not read, unless it is the only token."""
    ends = [[5, 0], [0], [5, 6], [0, 5, 0]]
    items = [
        ScoredRollout(
            Rollout(0, np.array([3], np.int32), np.array(ids, np.int32), np.zeros(len(ids), np.float32), "stop", 0),
            0.0,
            0,
        )
        for ids in ends
    ]
    assert collate(items, 0, 4).num_read.tolist() == [2, 1, 2, 3]  # type: ignore[union-attr]
    for match, expected in (("true", [1, 1, 2, 2]), ("false", [2, 1, 2, 3])):
        settings = config(f"discriminator.match_lengths={match}", "rollout.stop_at_end_of_text=true")
        learner = Learner(folder, settings, pad_token_id=0)
        batch = collate(items, 0, 4, view=learner.view)
        assert batch.num_read.tolist() == expected  # type: ignore[union-attr]
        discriminator = NeuralDiscriminator(folder, settings, pad_token_id=0)
        rows = discriminator.score([item.rollout for item in items])
        # The score is the mean over the tokens read; the others contribute zero.
        assert [int(np.count_nonzero(row.token_scores)) for row in rows] == expected  # type: ignore[arg-type]


def test_an_unread_end_of_text_does_not_enter_the_baseline(folder: Path) -> None:
    """Both responses start with a token of score 1: one ends, the other scores 1 again. Their means are equal."""
    parts = {(5, 0): [1.0, 0.0], (5, 6): [0.5, 0.5]}
    items = [
        ScoredRollout(
            Rollout(0, np.array([3], np.int32), np.array(ids, np.int32), np.zeros(2, np.float32), "stop", 0),
            1.0,
            0,
            1.0,
            token_scores=np.array(scores, np.float32),
        )
        for ids, scores in parts.items()
    ]
    sizes = ["rollout.batch_size=2", "rollout.samples_per_prompt=2", "generator.reinforce.advantage_scale=none"]
    unread = ["discriminator.match_lengths=true", "rollout.stop_at_end_of_text=true"]
    learner = Learner(folder, config(*sizes, *unread), pad_token_id=0)
    assert learner.update(items, iteration=0)["generator/advantage_deviation"] == 0


def test_an_average_over_responses_ignores_empty_ones(folder: Path) -> None:
    """For any micro-batching. Engines return no empty responses; one would lower the average of its micro-batch."""
    norms = []
    items = scored(REWARDS)
    empty = Rollout(0, np.array([3, 4], np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32), "stop", 0)
    items[1] = ScoredRollout(empty, 0.0, 0, 0.0, token_scores=np.zeros(0, np.float32))
    for size in (8, 2):
        settings = [SEQUENCE, "generator.reinforce.loss_average=sequence", f"learner.micro_batch_size={size}"]
        estimated = "generator.reinforce.kl.estimator=k3"
        learner = Learner(folder, config(*settings, estimated, "generator.max_grad_norm=1e9"), pad_token_id=0)
        norms.append(learner.update(items, iteration=0)["generator/grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
