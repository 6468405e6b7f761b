import math
from typing import get_args

import pytest
import torch

from rlgaf_ray.config.reward import COMBINATIONS, REWARD_KINDS, RewardCombination, RewardKind
from rlgaf_ray.objectives.rewards import (
    COMBINE,
    FROM_LOGITS,
    at_the_end,
    base_logprob_rewards,
    discriminator_reward,
    entropy_rewards,
)

LOGITS = torch.tensor([math.log(3.0), 0.0, -math.log(3.0)])  # probabilities 3/4, 1/2, 1/4


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("logit", [1.0986123, 0.0, -1.0986123]),
        ("probability", [0.75, 0.5, 0.25]),
        ("probability_centered", [0.25, 0.0, -0.25]),
        ("log_probability", [-0.2876821, -0.6931472, -1.3862944]),
    ],
)
def test_hand_worked_values(kind, expected):
    torch.testing.assert_close(discriminator_reward(LOGITS, kind=kind), torch.tensor(expected))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("logit", [-1e4, 1e4]), ("probability_centered", [-0.5, 0.5]), ("log_probability", [-1e4, 0.0])],
)
def test_extreme_logits_give_finite_rewards(kind, expected):
    torch.testing.assert_close(discriminator_reward(torch.tensor([-1e4, 1e4]), kind=kind), torch.tensor(expected))


def test_every_reward_kind_has_a_function_and_traits() -> None:
    assert get_args(RewardKind) == tuple(FROM_LOGITS) == tuple(REWARD_KINDS)
    assert get_args(RewardCombination) == tuple(COMBINE) == tuple(COMBINATIONS)
    logits = torch.linspace(-30, 30, 7)
    for kind, traits in REWARD_KINDS.items():
        assert traits.negative or discriminator_reward(logits, kind=kind).min() >= 0


@pytest.mark.parametrize(("combine", "expected"), [("sum", [7.0, 2.0, 3.0]), ("product", [8.0, 2.0, 9.0])])
def test_given_rewards_are_combined_by_weight(combine: RewardCombination, expected: list[float]) -> None:
    """Sums 2 + 2 x 2.5, 2, 2 x 1.5; products 0.5 x 4^2, 2, 3^2."""
    rewards = {"sum": [[2.0, 2.0, 9.0], [2.5, 9.0, 1.5]], "product": [[0.5, 2.0, 9.0], [4.0, 9.0, 3.0]]}[combine]
    given = torch.tensor([[True, True, False], [True, False, True]])
    assert COMBINE[combine](torch.tensor(rewards), torch.tensor([1.0, 2.0]), given).tolist() == expected


def test_a_high_reward_cannot_offset_a_zero_in_a_product() -> None:
    rewards = torch.tensor([[0.01, 0.5], [100.0, 1.0]])
    both, weights = torch.ones(2, 2, dtype=torch.bool), torch.tensor([1.0, 0.1])
    bought_off, honest = COMBINE["product"](rewards, weights, both)
    assert bought_off < honest
    bought_off, honest = COMBINE["sum"](rewards, weights, both)
    assert bought_off > honest


def test_rewards_are_placed_at_the_last_response_token() -> None:
    mask = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 1]]).bool()
    found = at_the_end(torch.tensor([2.0, -1.0]), mask)
    assert found.tolist() == [[0, 0, 2, 0], [0, 0, 0, -1]]


def test_the_reward_of_an_empty_response_is_dropped() -> None:
    mask = torch.tensor([[False, False], [False, True]])
    assert at_the_end(torch.tensor([float("nan"), 3.0]), mask).tolist() == [[0, 0], [0, 3]]


def test_base_log_prob_rewards_are_zero_outside_the_mask() -> None:
    logprobs = torch.tensor([[-9.0, -1.0, -0.5], [-2.0, float("nan"), -4.0]])
    mask = torch.tensor([[0, 1, 1], [1, 0, 1]]).bool()
    found = base_logprob_rewards(logprobs, mask, coefficient=0.5)
    assert found.tolist() == [[0, -0.5, -0.25], [-1, 0, -2]]


def test_base_log_prob_and_entropy_rewards_add_up_to_a_kl() -> None:
    mask = torch.tensor([[True, True]])
    policy, base = torch.tensor([[-1.0, -3.0]]), torch.tensor([[-2.0, -1.5]])
    both = base_logprob_rewards(base, mask, coefficient=0.5) + entropy_rewards(policy, mask, coefficient=0.5)
    assert both.tolist() == [[-0.5, 0.75]]  # -0.5 (log pi - log p_base)
