"""Rewards that cannot be combined, or that an algorithm does not support."""

from __future__ import annotations

import pytest

from rlgaf_ray.config import ConfigError, load_config

SEQUENCE = "generator.reinforce.credit=sequence"
LEAVE_ONE_OUT = "generator.reinforce.baseline=leave_one_out"
FUNCTION = "reward.functions=[{path: 'rewards.py:short', weight: 0.2}]"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["reward.combine=product", SEQUENCE], "but reward.kind=logit can be negative: set reward.kind=probability"),
        (["reward.combine=product", "reward.kind=log_probability", SEQUENCE], "set reward.kind=probability"),
        (
            ["reward={combine: product, kind: probability, functions: [{path: 'r.py:f', weight: -1}]}", SEQUENCE],
            "needs non-negative weights, but f has -1",
        ),
        (["reward={combine: product, kind: probability}"], "credit=token needs a reward that is a sum over tokens"),
        (["reward.kind=probability"], "credit=token needs a reward that is a sum over tokens: set reward.kind=logit"),
        (
            ["generator.algorithm=gumbel", FUNCTION],
            "learns from the discriminator's gradient and would ignore reward.functions",
        ),
        (["generator.algorithm=gumbel", "reward.discriminator_weight=0.5"], "remove reward.discriminator_weight"),
        (["reward.discriminator_weight=-1"], "must be greater than or equal to 0"),
        (["reward.functions=[{path: 'a.py:f'}, {path: 'b.py:f'}]"], "has two functions named f: set another name"),
        (["reward.functions=[{path: 'a.py:mean'}]"], "the reward function name mean is reserved"),
        (["reward.functions=[{path: 'a.py:f', name: 'a b'}]"], "name 'a b' is not a metric name"),
        (["reward.functions=[{weight: 1}]"], "name '' is not a metric name"),
        (["reward.functions=[{path: 'a.py:f', wieght: 1}]"], "unknown key reward.functions.0.wieght"),
        ([f"{FUNCTION[:-2].replace('0.2', '.nan')}}}]"], "must be a finite number"),
    ],
)
def test_incompatible_settings_are_rejected_in_one_sentence(overrides: list[str], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, overrides)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "share"),
    [
        ([], 1.0),
        (["reward.discriminator_weight=0.5", FUNCTION], 0.5),
        (["reward.kind=zero"], 0.0),
        (["reward={kind: probability, discriminator_weight: 0.0}", FUNCTION], 0.0),
        (["reward={combine: product, discriminator_weight: 0.0}", FUNCTION], 0.0),
        (["reward={combine: product, kind: probability}", SEQUENCE, LEAVE_ONE_OUT, FUNCTION], None),
        (["generator.algorithm=gumbel", FUNCTION.replace("0.2", "0")], 1.0),
    ],
)
def test_token_share(overrides: list[str], share: float | None) -> None:
    assert load_config(None, overrides).reward.token_share == share


def test_user_code_is_listed_as_a_risk() -> None:
    assert load_config().reward.risks == []
    assert load_config(None, [FUNCTION]).reward.risks == ["reward.functions=rewards.py:short: its Python code will run"]
