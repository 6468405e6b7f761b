"""Configs without a learning signal, or with a wrong one, are rejected in one line."""

from __future__ import annotations

import pytest

from rlgaf_ray.config import ConfigError, load_config

SEQUENCE = ["generator.reinforce.credit=sequence"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["rollout={batch_size: 1, samples_per_prompt: 1}"],
            "generator.reinforce.baseline=position_mean needs several rollouts per batch, but rollout.batch_size=1: "
            "set it to 2 or more, or generator.reinforce.baseline=none",
        ),
        (
            ["generator.reinforce={baseline: leave_one_out, credit: sequence, discount: 0.9}"],
            "generator.reinforce: baseline=leave_one_out is a mean of undiscounted returns, but discount=0.9: set "
            "discount=1, or baseline=position_mean, batch_mean or none",
        ),
        (
            ["generator.reinforce.discount=0.9"],
            "generator.reinforce: discount=0.9 does not apply to the earlier tokens' score that credit=token "
            "subtracts: set discount=1, or credit=sequence",
        ),
        (
            ["generator.reinforce.reward_to_go=false"],
            "generator.reinforce: reward_to_go=false gives all tokens the same return: set credit=sequence",
        ),
        (
            ["generator.seqgan.reward_to_go=false"],
            "generator.seqgan.reward_to_go=false would ignore the action values of tokens: set "
            "generator.seqgan.reward_to_go=true",
        ),
        (
            ["generator.reinforce={credit: sequence, baseline: none, reward_to_go: false, discount: 0.5}"],
            "generator.reinforce: reward_to_go=false ignores discount=0.5: set discount=1, or reward_to_go=true",
        ),
        (
            ["generator.reinforce.minibatches=2"],
            "generator.reinforce: epochs=1 and minibatches=2 make several off-policy steps per batch: set clip_range, "
            "e.g. 0.2, or both to 1",
        ),
        (
            ["generator.reinforce.ratio=sequence"],
            "generator.reinforce: ratio has no effect without clip_range: set clip_range, or remove ratio",
        ),
        (
            ["generator.reinforce.clip_range_high=0.3"],
            "generator.reinforce: clip_range_high has no effect without clip_range: set clip_range, or remove "
            "clip_range_high",
        ),
        (
            ["rollout.top_p=0.9"],
            "rollout.top_p=0.9 samples from a truncated distribution, but generator.algorithm=reinforce uses "
            "log-probs of the full one: set rollout.top_p=1 and rollout.top_k=0 (to sharpen sampling, lower "
            "rollout.temperature)",
        ),
        (
            ["discriminator.update_ratio.mode=adaptive", "discriminator.learning_rate_schedule=cosine"],
            "discriminator.learning_rate_schedule=cosine needs a known number of updates, which "
            "discriminator.update_ratio.mode=adaptive varies: set discriminator.learning_rate_schedule=constant, or "
            "discriminator.update_ratio.mode=fixed",
        ),
        (
            ["generator.algorithm=seqgan", "rollout.samples_per_prompt=1"],
            "generator.seqgan.baseline=leave_one_out needs several samples per prompt, but "
            "rollout.samples_per_prompt=1: set it to 2 or more, or change generator.seqgan.baseline",
        ),
        (
            [*SEQUENCE, "generator.reinforce.baseline=group_mean", "rollout.samples_per_prompt=1"],
            "generator.reinforce.baseline=group_mean needs several samples per prompt, but "
            "rollout.samples_per_prompt=1: set it to 2 or more, or change generator.reinforce.baseline",
        ),
        (
            ["generator.reinforce.advantage_scale=group", "rollout.samples_per_prompt=1"],
            "generator.reinforce.advantage_scale=group needs several samples per prompt, but "
            "rollout.samples_per_prompt=1: set it to 2 or more, or change generator.reinforce.advantage_scale",
        ),
        (
            ["generator.reinforce.baseline=none", "rollout.samples_per_prompt=1", "rollout.batch_size=1"],
            "generator.reinforce.advantage_scale=batch needs several rollouts per batch, but rollout.batch_size=1: "
            "set it to 2 or more, or generator.reinforce.advantage_scale=none",
        ),
        (
            ["generator.algorithm=ppo", "generator.ppo.minibatches=8", "rollout.batch_size=4"],
            "generator.ppo.minibatches=8 exceeds rollout.batch_size=4, and some would be empty: set it to 4 or less",
        ),
        (
            ["generator.algorithm=ppo", "generator.ppo.kl={target: 0.1, horizon: 12}"],
            "generator.ppo.kl.horizon=12 must be above rollout.batch_size / 5 = 12.8: the adaptive coefficient could "
            "become negative",
        ),
        (
            ["generator.algorithm=ppo", "rollout.top_k=5"],
            "rollout.top_k=5 samples from a truncated distribution, but generator.algorithm=ppo uses log-probs of the "
            "full one: set rollout.top_p=1 and rollout.top_k=0 (to sharpen sampling, lower rollout.temperature)",
        ),
        (
            ["generator={algorithm: gumbel, gumbel: {mode: conditional}}", "rollout.top_k=5"],
            "rollout.top_k=5 samples from a truncated distribution, but generator.algorithm=gumbel uses log-probs of "
            "the full one: set rollout.top_p=1 and rollout.top_k=0 (to sharpen sampling, lower rollout.temperature)",
        ),
        (
            ["generator.algorithm=gumbel", "learner.activation_checkpointing=true"],
            "generator.gumbel.mode=autoregressive keeps keys and values of a block, which "
            "learner.activation_checkpointing=true computes twice: set one of them to conditional or false",
        ),
        (
            ["generator.algorithm=gumbel", "discriminator.view=without_end"],
            "generator.algorithm=gumbel scores full responses, but discriminator.view=without_end reads only a part: "
            "set discriminator.view=response",
        ),
        (
            ["discriminator={view: last_tokens, view_tokens: 3}", "rollout.stop_at_end_of_text=true"],
            "generator.reinforce.credit=token with discriminator.view=last_tokens needs responses of equal length: "
            "set rollout.stop_at_end_of_text=false, or generator.reinforce.credit=sequence",
        ),
        (
            ["warmup.num_workers=40"],
            "warmup.num_workers=40 exceeds warmup.generator.batch_size=32, and some workers would be idle: set it to "
            "32 or less",
        ),
        (
            ["warmup.num_workers=2", "warmup.sft.batch_size=1"],
            "warmup.num_workers=2 exceeds warmup.sft.batch_size=1, and some workers would be idle: set it to 1 or less",
        ),
        (
            ["warmup.num_workers=2", "warmup.discriminator.batch_size=1"],
            "warmup.num_workers=2 exceeds warmup.discriminator.batch_size=1, and some workers would be idle: set it "
            "to 1 or less",
        ),
    ],
)
def test_configs_that_cannot_learn_are_rejected(overrides: list[str], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, overrides)
    assert str(caught.value) == expected


def test_a_batch_of_one_is_allowed_without_batch_statistics() -> None:
    plain = "generator.reinforce={baseline: none, advantage_scale: none}"
    assert load_config(None, ["rollout={batch_size: 1, samples_per_prompt: 1}", plain]).rollout.batch_size == 1
    assert load_config(None, ["generator.algorithm=gumbel", "rollout.top_p=0.5"]).rollout.top_p == 0.5


def test_view_last_tokens_needs_fixed_lengths_or_sequence_credit() -> None:
    """Allowed with token credit if all responses have equal length (imdb's default), else with sequence credit."""
    view = "discriminator={view: last_tokens, view_tokens: 3}"
    assert load_config(None, [view]).discriminator.view_tokens == 3
    assert load_config(None, [view, "rollout.stop_at_end_of_text=true", *SEQUENCE]).stop_at_end_of_text
