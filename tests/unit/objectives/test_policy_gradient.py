"""REINFORCE and PPO against exact enumeration of all 27 responses (3 tokens, 3 steps) of an autoregressive policy."""

import itertools

import pytest
import torch

from rlgaf_ray.objectives.advantages import rewards_to_go
from rlgaf_ray.objectives.baselines import leave_one_out_baseline, past_scores, position_mean_baseline
from rlgaf_ray.objectives.policy import ppo_policy_loss, reinforce_loss
from rlgaf_ray.objectives.rewards import at_the_end, entropy_rewards

VOCABULARY, LENGTH = 3, 3
SEQUENCES = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=LENGTH)))  # [27, 3]
# A context is the prefix: 1 empty, 3 of one token, 9 of two tokens, each with its own row of logits.
CONTEXTS = torch.stack(
    [torch.zeros(27, dtype=torch.long), 1 + SEQUENCES[:, 0], 4 + SEQUENCES[:, :2] @ torch.tensor([3, 1])], 1
)
# One prompt column before the response and one padding column after it.
MASK = torch.tensor([[False, True, True, True, False]]).expand(27, -1)
LENGTHS = MASK.sum(1)
JUNK = 1e3  # fills entries outside the mask


def table(seed):
    return torch.randn(13, VOCABULARY, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# A token's reward depends on the token and its prefix.
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
    """The gradient of E[sum of rewards], by differentiating the sum over all responses."""
    value = (response_logprobs(logits).sum(1).exp() * REWARDS.sum(1)).sum()
    (gradient,) = torch.autograd.grad(value, logits)
    assert gradient.abs().max() > 0.05
    return gradient


def expected_gradient(logits, advantages, loss_of=None):
    """Expected value of the single-sample estimate: the probability-weighted sum over all responses."""
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


def test_full_return_without_baseline(logits, exact):
    advantages = REWARDS.sum(1, keepdim=True).expand(-1, LENGTH)
    torch.testing.assert_close(expected_gradient(logits, pad(advantages)), exact)


def test_reward_to_go_without_baseline(logits, exact):
    advantages = rewards_to_go(pad(REWARDS), MASK, discount=1.0)
    torch.testing.assert_close(expected_gradient(logits, advantages), exact)


def test_constant_baseline(logits, exact):
    advantages = rewards_to_go(pad(REWARDS), MASK, discount=1.0) - 0.7
    torch.testing.assert_close(expected_gradient(logits, advantages), exact)


def test_state_dependent_baseline(logits, exact):
    baseline = table(2)[CONTEXTS, 0]  # any function of the prefix
    advantages = rewards_to_go(pad(REWARDS), MASK, discount=1.0) - pad(baseline)
    torch.testing.assert_close(expected_gradient(logits, advantages), exact)


def test_action_dependent_baseline_is_biased(logits, exact):
    """Shows that the equality tests above can fail: a baseline that depends on the sampled token breaks them."""
    baseline = table(2)[CONTEXTS, SEQUENCES]
    advantages = rewards_to_go(pad(REWARDS), MASK, discount=1.0) - pad(baseline)
    assert (expected_gradient(logits, advantages) - exact).abs().max() > 0.01


def test_past_scores_keep_the_expected_gradient(logits, exact):
    """A single reward at the end of the response, the sum of its token scores."""
    whole = at_the_end(REWARDS.sum(1), MASK).double()
    returns = rewards_to_go(whole, MASK, discount=1.0)
    credited = returns - past_scores(pad(REWARDS), MASK, LENGTHS) / LENGTH
    torch.testing.assert_close(credited, rewards_to_go(pad(REWARDS), MASK, discount=1.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(expected_gradient(logits, credited), exact, atol=1e-6, rtol=0)


def test_past_scores_of_independent_tokens_remove_a_third_of_the_variance():
    """Three uniform tokens, each scored by its value: returns sum 3, 2, 1 of them instead of 3, 3, 3.

    Each of the 27 responses is centred by the other 26.
    """
    values = torch.tensor([-1.0, 0.0, 1.0])[SEQUENCES]
    returns = rewards_to_go(at_the_end(values.sum(1), MASK), MASK, discount=1.0)
    credited = returns - past_scores(pad(values), MASK, LENGTHS) / LENGTH
    noise = [(each - position_mean_baseline(each, MASK))[:, 1:4].square().mean().item() for each in (returns, credited)]
    assert noise == pytest.approx([3 * 2 / 3 * (27 / 26) ** 2, 2 * 2 / 3 * (27 / 26) ** 2])


def expected_gradient_of_pairs(logits, advantages_of):
    """Like ``expected_gradient`` for batches of two responses; ``advantages_of`` takes their rows."""
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


def test_entropy_reward_has_the_gradient_of_the_sequence_entropy(logits):
    logprobs = response_logprobs(logits).sum(1)
    (exact_gradient,) = torch.autograd.grad(-0.3 * (logprobs.exp() * logprobs).sum(), logits)
    rewards = entropy_rewards(pad(response_logprobs(logits)), MASK, coefficient=0.3)
    assert not rewards.requires_grad and not rewards[~MASK].any()
    advantages = rewards_to_go(rewards, MASK, discount=1.0)
    torch.testing.assert_close(expected_gradient(logits, advantages), exact_gradient)
    assert exact_gradient.abs().max() > 0.01


def test_importance_weights_correct_for_another_sampler(logits, exact):
    """Samples from the uniform policy with sequence-level weights pi / uniform give the same gradient."""
    logprobs = response_logprobs(logits)
    weights = (27 * logprobs.sum(1).exp().detach())[:, None].expand(-1, LENGTH)
    advantages = rewards_to_go(pad(REWARDS), MASK, discount=1.0)
    loss, metrics = reinforce_loss(pad(logprobs), advantages, MASK, average="sequence", importance_weights=pad(weights))
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(-LENGTH * gradient, exact)
    assert metrics["importance_weight"].item() == pytest.approx(1.0)
