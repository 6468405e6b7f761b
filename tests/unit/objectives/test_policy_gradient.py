"""REINFORCE and PPO against exact enumeration: all 27 answers of an autoregressive policy over 3 tokens and 3 steps."""

import itertools

import pytest
import torch

from rlgaf_ray.objectives.advantages import rewards_to_go
from rlgaf_ray.objectives.baselines import leave_one_out_baseline, past_scores, position_mean_baseline
from rlgaf_ray.objectives.policy import ppo_policy_loss, reinforce_loss
from rlgaf_ray.objectives.rewards import at_the_end, entropy_rewards

VOCABULARY, LENGTH = 3, 3
SEQUENCES = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=LENGTH)))  # [27, 3]
# A context is the tokens so far: 1 empty, 3 of one token, 9 of two, each with its own row of logits.
CONTEXTS = torch.stack(
    [torch.zeros(27, dtype=torch.long), 1 + SEQUENCES[:, 0], 4 + SEQUENCES[:, :2] @ torch.tensor([3, 1])], 1
)
# A prompt column before the response and a padded one behind it.
MASK = torch.tensor([[False, True, True, True, False]]).expand(27, -1)
LENGTHS = MASK.sum(1)
JUNK = 1e3  # stands wherever the mask is false


def table(seed):
    return torch.randn(13, VOCABULARY, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# The reward of a token depends on the token and on all before it.
REWARDS = table(1)[CONTEXTS, SEQUENCES]  # [27, 3]


def response_logprobs(logits):
    return logits.log_softmax(-1)[CONTEXTS, SEQUENCES]  # [27, 3]


def pad(values):
    return torch.nn.functional.pad(values, (1, 1), value=JUNK)  # [27, 5]


@pytest.fixture
def logits():
    return table(0).requires_grad_()


@pytest.fixture
def exact(logits):
    """The gradient of E[sum of rewards], by differentiating the sum over all answers."""
    value = (response_logprobs(logits).sum(1).exp() * REWARDS.sum(1)).sum()
    (gradient,) = torch.autograd.grad(value, logits)
    assert gradient.abs().max() > 0.05
    return gradient


def expected_gradient(logits, advantages, loss_of=None):
    """The estimate from one sample, weighted by the sample's probability and summed over all of them."""
    logprobs = response_logprobs(logits)
    probabilities = logprobs.sum(1).exp().detach()
    assert probabilities.sum().item() == pytest.approx(1.0)
    losses = []
    for index in range(len(SEQUENCES)):
        one = slice(index, index + 1)
        if loss_of is None:
            loss, _ = reinforce_loss(pad(logprobs)[one], advantages[one], MASK[one], average="token")
        else:
            loss = loss_of(pad(logprobs)[one], advantages[one], MASK[one])
        losses.append(loss)
    (gradient,) = torch.autograd.grad((probabilities * torch.stack(losses)).sum(), logits)
    return -LENGTH * gradient  # the loss is a mean over the tokens; the return is a sum


def test_whole_return_without_baseline(logits, exact):
    advantages = REWARDS.sum(1, keepdim=True).expand(-1, LENGTH)
    torch.testing.assert_close(expected_gradient(logits, pad(advantages)), exact)


def test_reward_to_go_without_baseline(logits, exact):
    advantages = rewards_to_go(pad(REWARDS), MASK, discount=1.0)
    torch.testing.assert_close(expected_gradient(logits, advantages), exact)


def test_constant_baseline(logits, exact):
    advantages = rewards_to_go(pad(REWARDS), MASK, discount=1.0) - 0.7
    torch.testing.assert_close(expected_gradient(logits, advantages), exact)


def test_baseline_that_depends_on_the_state(logits, exact):
    baseline = table(2)[CONTEXTS, 0]  # any function of the tokens before
    advantages = rewards_to_go(pad(REWARDS), MASK, discount=1.0) - pad(baseline)
    torch.testing.assert_close(expected_gradient(logits, advantages), exact)


def test_baseline_that_depends_on_the_action_is_biased(logits, exact):
    """The equalities above could fail: a baseline that sees the sampled token breaks them."""
    baseline = table(2)[CONTEXTS, SEQUENCES]
    advantages = rewards_to_go(pad(REWARDS), MASK, discount=1.0) - pad(baseline)
    assert (expected_gradient(logits, advantages) - exact).abs().max() > 0.01


def test_past_scores_leave_the_gradient_as_it_is(logits, exact):
    """One reward at the end of the answer, that is the sum of its tokens' parts."""
    whole = at_the_end(REWARDS.sum(1), MASK).double()
    returns = rewards_to_go(whole, MASK, discount=1.0)
    credited = returns - past_scores(pad(REWARDS), MASK, LENGTHS) / LENGTH
    torch.testing.assert_close(credited, rewards_to_go(pad(REWARDS), MASK, discount=1.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(expected_gradient(logits, credited), exact, atol=1e-6, rtol=0)


def test_past_scores_of_independent_tokens_take_a_third_of_the_noise():
    """Three tokens drawn evenly, each worth its own value: returns hold 3, 2, 1 of them in place of 3, 3, 3.

    Each of 27 answers is centred by the 26 others.
    """
    values = torch.tensor([-1.0, 0.0, 1.0])[SEQUENCES]
    returns = rewards_to_go(at_the_end(values.sum(1), MASK), MASK, discount=1.0)
    credited = returns - past_scores(pad(values), MASK, LENGTHS) / LENGTH
    noise = [(each - position_mean_baseline(each, MASK))[:, 1:4].square().mean().item() for each in (returns, credited)]
    assert noise == pytest.approx([3 * 2 / 3 * (27 / 26) ** 2, 2 * 2 / 3 * (27 / 26) ** 2])


def expected_gradient_of_pairs(logits, advantages_of):
    """As ``expected_gradient``, of batches of two answers; ``advantages_of`` takes their rows."""
    logprobs = response_logprobs(logits)
    probabilities, padded = logprobs.sum(1).exp().detach(), pad(logprobs)
    total = torch.zeros((), dtype=torch.float64)
    for pair in itertools.product(range(27), repeat=2):
        rows = list(pair)
        loss, _ = reinforce_loss(padded[rows], advantages_of(rows), MASK[rows], average="token")
        total = total + probabilities[rows].prod() * loss
    (gradient,) = torch.autograd.grad(total, logits)
    return -LENGTH * gradient


def test_position_mean_over_all_pairs(logits, exact):
    returns = rewards_to_go(pad(REWARDS), MASK, discount=1.0)

    def advantages(rows):
        return returns[rows] - position_mean_baseline(returns[rows], MASK[rows])

    torch.testing.assert_close(expected_gradient_of_pairs(logits, advantages), exact)


def test_leave_one_out_baseline_over_all_pairs(logits, exact):
    returns = rewards_to_go(pad(REWARDS), MASK, discount=1.0)

    def advantages(rows):
        return returns[rows] - leave_one_out_baseline(REWARDS[rows].sum(1), group_size=2)[:, None]

    torch.testing.assert_close(expected_gradient_of_pairs(logits, advantages), exact)


def test_ppo_at_ratio_one(logits, exact):
    def loss_of(logprobs, advantages, mask):
        loss, _ = ppo_policy_loss(logprobs, logprobs.detach(), advantages, mask, clip_range=0.2, average="token")
        return loss

    advantages = rewards_to_go(pad(REWARDS), MASK, discount=1.0)
    torch.testing.assert_close(expected_gradient(logits, advantages, loss_of), exact)


def test_entropy_as_a_reward_has_the_gradient_of_the_entropy_of_whole_answers(logits):
    logprobs = response_logprobs(logits).sum(1)
    (exact_gradient,) = torch.autograd.grad(-0.3 * (logprobs.exp() * logprobs).sum(), logits)
    rewards = entropy_rewards(pad(response_logprobs(logits)), MASK, coefficient=0.3)
    assert not rewards.requires_grad and not rewards[~MASK].any()
    advantages = rewards_to_go(rewards, MASK, discount=1.0)
    torch.testing.assert_close(expected_gradient(logits, advantages), exact_gradient)
    assert exact_gradient.abs().max() > 0.01


def test_importance_weights_correct_for_another_sampler(logits, exact):
    """Samples from the uniform policy, whole-sequence weights pi / uniform: the same gradient."""
    logprobs = response_logprobs(logits)
    weights = (27 * logprobs.sum(1).exp().detach())[:, None].expand(-1, LENGTH)
    advantages = rewards_to_go(pad(REWARDS), MASK, discount=1.0)
    loss, metrics = reinforce_loss(pad(logprobs), advantages, MASK, average="sequence", importance_weights=pad(weights))
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(-LENGTH * gradient, exact)
    assert metrics["importance_weight"].item() == pytest.approx(1.0)
