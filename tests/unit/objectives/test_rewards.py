import math

import pytest
import torch

from rlgaf_ray.objectives.rewards import at_the_end, base_logprob_rewards, discriminator_reward, entropy_rewards

LOGITS = torch.tensor([math.log(3.0), 0.0, -math.log(3.0)])  # probabilities 3/4, 1/2, 1/4


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("logit", [1.0986123, 0.0, -1.0986123]),
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
def test_a_sure_discriminator_gives_finite_rewards(kind, expected):
    torch.testing.assert_close(discriminator_reward(torch.tensor([-1e4, 1e4]), kind=kind), torch.tensor(expected))


def test_unknown_kind_names_the_choices():
    with pytest.raises(
        ValueError, match="unknown reward kind 'prob': choose logit, probability_centered, log_probability or"
    ):
        discriminator_reward(LOGITS, kind="prob")


def test_rewards_stand_at_the_last_response_token() -> None:
    mask = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 1]]).bool()
    found = at_the_end(torch.tensor([2.0, -1.0]), mask)
    assert found.tolist() == [[0, 0, 2, 0], [0, 0, 0, -1]]


def test_a_response_without_tokens_has_no_place_for_its_reward() -> None:
    mask = torch.tensor([[False, False], [False, True]])
    assert at_the_end(torch.tensor([float("nan"), 3.0]), mask).tolist() == [[0, 0], [0, 3]]


def test_the_base_models_log_probs_count_inside_the_mask_alone() -> None:
    logprobs = torch.tensor([[-9.0, -1.0, -0.5], [-2.0, float("nan"), -4.0]])
    mask = torch.tensor([[0, 1, 1], [1, 0, 1]]).bool()
    found = base_logprob_rewards(logprobs, mask, coefficient=0.5)
    assert found.tolist() == [[0, -0.5, -0.25], [-1, 0, -2]]


def test_base_log_probs_and_entropy_bonus_are_a_kl() -> None:
    mask = torch.tensor([[True, True]])
    policy, base = torch.tensor([[-1.0, -3.0]]), torch.tensor([[-2.0, -1.5]])
    both = base_logprob_rewards(base, mask, coefficient=0.5) + entropy_rewards(policy, mask, coefficient=0.5)
    assert both.tolist() == [[-0.5, 0.75]]  # -0.5 (log pi - log p_base)
