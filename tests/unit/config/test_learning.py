"""Configs that an update could not learn from, or would learn wrongly from, are refused in one line."""

from __future__ import annotations

import pytest

from rlgaf_ray.config import ConfigError, load_config

SEQUENCE = ["generator.reinforce.credit=sequence"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["rollout={batch_size: 1, samples_per_prompt: 1}"],
            "generator.reinforce.baseline=position_mean compares the rollouts of a batch, and "
            "rollout.batch_size=1: set it to 2 or more, or generator.reinforce.baseline=none",
        ),
        (
            ["generator.reinforce={baseline: leave_one_out, credit: sequence, discount: 0.9}"],
            "generator.reinforce: baseline=leave_one_out is a mean of undiscounted totals, and discount=0.9 makes "
            "returns smaller: set discount=1, or take position_mean, batch_mean or none",
        ),
        (
            ["generator.reinforce.discount=0.9"],
            "generator.reinforce: discount=0.9 discounts the score, but not the earlier tokens' parts that "
            "credit=token subtracts from it: set discount=1 or credit=sequence",
        ),
        (
            ["generator.reinforce.reward_to_go=false"],
            "generator.reinforce: reward_to_go=false gives all tokens one return: set credit=sequence",
        ),
        (
            ["generator.seqgan.reward_to_go=false"],
            "generator.seqgan.reward_to_go: SeqGAN's action values are each token's own; leave it at true",
        ),
        (
            ["generator.reinforce={credit: sequence, baseline: none, reward_to_go: false, discount: 0.5}"],
            "generator.reinforce: reward_to_go=false discounts nothing, but discount=0.5: set discount=1",
        ),
        (
            ["generator.reinforce.minibatches=2"],
            "generator.reinforce: epochs=1 and minibatches=2 step away from the policy that sampled: set "
            "clip_range, e.g. 0.2, or both to 1",
        ),
        (
            ["generator.reinforce.ratio=sequence"],
            "generator.reinforce: ratio is read only with clip_range: set clip_range, or leave ratio out",
        ),
        (
            ["generator.reinforce.clip_range_high=0.3"],
            "generator.reinforce: clip_range_high is read only with clip_range: set clip_range, or leave "
            "clip_range_high out",
        ),
        (
            ["rollout.top_p=0.9"],
            "rollout.top_p=0.9 samples from a truncated distribution, and generator.algorithm=reinforce learns "
            "from log-probs of the full one: set rollout.top_p=1 and rollout.top_k=0, and lower "
            "rollout.temperature for likelier tokens",
        ),
        (
            ["discriminator.update_ratio.mode=adaptive", "discriminator.learning_rate_schedule=cosine"],
            "discriminator.learning_rate_schedule=cosine needs a known number of updates, which "
            "discriminator.update_ratio.mode=adaptive changes: set one of them to constant or fixed",
        ),
        (
            ["generator.algorithm=seqgan", "rollout.samples_per_prompt=1"],
            "generator.seqgan.baseline=leave_one_out compares the samples of one prompt, and "
            "rollout.samples_per_prompt=1: set it to 2 or more, or change generator.seqgan.baseline",
        ),
        (
            [*SEQUENCE, "generator.reinforce.baseline=group_mean", "rollout.samples_per_prompt=1"],
            "generator.reinforce.baseline=group_mean compares the samples of one prompt, and "
            "rollout.samples_per_prompt=1: set it to 2 or more, or change generator.reinforce.baseline",
        ),
        (
            ["generator.reinforce.advantage_scale=group", "rollout.samples_per_prompt=1"],
            "generator.reinforce.advantage_scale=group compares the samples of one prompt, and "
            "rollout.samples_per_prompt=1: set it to 2 or more, or change generator.reinforce.advantage_scale",
        ),
        (
            ["generator.reinforce.baseline=none", "rollout.samples_per_prompt=1", "rollout.batch_size=1"],
            "generator.reinforce.advantage_scale=batch compares the rollouts of a batch, and "
            "rollout.batch_size=1: set it to 2 or more, or generator.reinforce.advantage_scale=none",
        ),
        (
            ["generator.algorithm=ppo", "generator.ppo.minibatches=8", "rollout.batch_size=4"],
            "generator.ppo.minibatches=8 is more than rollout.batch_size=4: some would have no rollout to learn from",
        ),
        (
            ["generator.algorithm=ppo", "generator.ppo.kl={target: 0.1, horizon: 12}"],
            "generator.ppo.kl.horizon=12 must be above rollout.batch_size / 5 = 12.8: the adaptive coefficient "
            "could turn negative",
        ),
        (
            ["generator.algorithm=ppo", "rollout.top_k=5"],
            "rollout.top_k=5 samples from a truncated distribution, and generator.algorithm=ppo learns from "
            "log-probs of the full one: set rollout.top_p=1 and rollout.top_k=0, and lower rollout.temperature "
            "for likelier tokens",
        ),
        (
            ["generator={algorithm: gumbel, gumbel: {mode: conditional}}", "rollout.top_k=5"],
            "rollout.top_k=5 samples from a truncated distribution, and generator.algorithm=gumbel learns from "
            "log-probs of the full one: set rollout.top_p=1 and rollout.top_k=0, and lower rollout.temperature "
            "for likelier tokens",
        ),
        (
            ["generator.algorithm=gumbel", "discriminator.view=without_end"],
            "generator.algorithm=gumbel reads whole responses, of which discriminator.view=without_end hides a part "
            "from the discriminator: set discriminator.view=response",
        ),
        (
            ["discriminator={view: last_tokens, view_tokens: 3}", "rollout.stop_at_end_of_text=true"],
            "generator.reinforce.credit=token credits tokens before it is known which are the last ones: with "
            "discriminator.view=last_tokens set generator.reinforce.credit=sequence, or "
            "rollout.stop_at_end_of_text=false, with which all responses have one length",
        ),
        (
            ["warmup.num_workers=40"],
            "warmup.num_workers=40 is more than warmup.generator.batch_size=32: some would have nothing to learn from",
        ),
        (
            ["warmup.num_workers=2", "warmup.sft.batch_size=1"],
            "warmup.num_workers=2 is more than warmup.sft.batch_size=1: some would have nothing to learn from",
        ),
        (
            ["warmup.num_workers=2", "warmup.discriminator.batch_size=1"],
            "warmup.num_workers=2 is more than warmup.discriminator.batch_size=1: some would have nothing to "
            "learn from",
        ),
    ],
)
def test_what_teaches_nothing_is_refused(overrides: list[str], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, overrides)
    assert str(caught.value) == expected


def test_what_does_not_read_the_others_takes_a_batch_of_one() -> None:
    plain = "generator.reinforce={baseline: none, advantage_scale: none}"
    assert load_config(None, ["rollout={batch_size: 1, samples_per_prompt: 1}", plain]).rollout.batch_size == 1
    assert load_config(None, ["generator.algorithm=gumbel", "rollout.top_p=0.5"]).rollout.top_p == 0.5


def test_last_tokens_are_read_where_they_are_known() -> None:
    """With token credit where all responses have one length (imdb's default), else with whole scores."""
    view = "discriminator={view: last_tokens, view_tokens: 3}"
    assert load_config(None, [view]).discriminator.view_tokens == 3
    assert load_config(None, [view, "rollout.stop_at_end_of_text=true", *SEQUENCE]).stop_at_end_of_text
