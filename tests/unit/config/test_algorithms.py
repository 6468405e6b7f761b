"""Traits of the algorithms' sections."""

from __future__ import annotations

from typing import Any

import pytest

from rlgaf_ray.config import ConfigError, load_config

PLAIN = {
    "needs_discriminator": False,
    "searches": False,
    "rewards_tokens": True,
    "trains_critic": False,
    "text": None,
    "passes": 1,
    "samples_again": False,
    "rollout_average": 0.0,
}


@pytest.mark.parametrize(
    ("overrides", "traits"),
    [
        ([], {"text": "demonstrations"}),
        (["generator.reinforce.demonstration_coefficient=0"], {}),
        (
            ["generator.reinforce.clip_range=0.2", "generator.reinforce.epochs=3"],
            {"text": "demonstrations", "passes": 3},
        ),
        (["generator.algorithm=ppo"], {"trains_critic": True, "passes": 2}),
        (
            ["generator.algorithm=ppo", "generator.ppo.pretraining_coefficient=0.5"],
            {"trains_critic": True, "passes": 2, "text": "pretraining"},
        ),
        (["generator.algorithm=seqgan"], {"searches": True}),
        (
            ["generator.algorithm=seqgan", "generator.seqgan.rollout_policy_rate=0.8"],
            {"searches": True, "rollout_average": 0.8},
        ),
        (
            ["generator.algorithm=gumbel"],
            {"needs_discriminator": True, "rewards_tokens": False, "samples_again": True},
        ),
        (
            ["generator.algorithm=gumbel", "generator.gumbel.mode=conditional"],
            {"needs_discriminator": True, "rewards_tokens": False},
        ),
        (["generator.seqgan.rollout_policy_rate=0.8"], {"text": "demonstrations"}),  # not of the algorithm in use
    ],
)
def test_traits(overrides: list[str], traits: dict[str, Any]) -> None:
    active = load_config(None, overrides).generator.active
    assert {name: getattr(active, name) for name in PLAIN} == PLAIN | traits


@pytest.mark.parametrize(
    ("algorithm", "exact", "possible"),
    [("reinforce", True, True), ("ppo", False, True), ("seqgan", False, False), ("gumbel", True, False)],
)
def test_kl_and_schedule(algorithm: str, exact: bool, possible: bool) -> None:
    active = load_config(None, [f"generator.algorithm={algorithm}"]).generator.active
    assert active.kl.exact == exact and (active.sync_only is None) == possible


def test_exact_follows_the_kl_estimator() -> None:
    settings = ["generator.reinforce.kl.estimator=k3"]
    assert not load_config(None, settings).generator.active.kl.exact


def test_unsupported_settings_are_rejected() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["generator.algorithm=gumbel", "generator.entropy_bonus=0.1", "reward.clip=1.0"])
    assert str(caught.value) == (
        "generator.algorithm=gumbel does not use per-token rewards: remove generator.entropy_bonus"
    )


def test_a_critic_needs_a_transformer() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("squad_seqgan_lstm", ["generator.algorithm=ppo"])
    assert str(caught.value) == (
        "model.generator=seqgan-lstm cannot be a critic: set generator.algorithm=seqgan or reinforce"
    )
