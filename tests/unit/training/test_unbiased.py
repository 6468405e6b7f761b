"""REINFORCE with responses of varying length against exact enumeration: its expectation is the policy gradient.

Responses over two tokens and an end of text, truncated at three: fifteen of one to three tokens. Losses use
``sequence_sum``, the average of RLGAF's eq. 2.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from rlgaf_ray.config import load_config
from rlgaf_ray.objectives.policy import LossAverage, reinforce_loss
from rlgaf_ray.training.reinforce import Reinforce
from rlgaf_ray.types import SequenceBatch, TrainBatch

END, LENGTH = 2, 3
SEQUENCES = [
    item
    for length in (1, 2, 3)
    for item in itertools.product(range(3), repeat=length)
    if END not in item[:-1] and (item[-1] == END or length == LENGTH)
]
CONTEXTS = {prefix: index for index, prefix in enumerate([(), (0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1)])}
MASK = torch.tensor([[position < len(item) for position in range(LENGTH)] for item in SEQUENCES])


def table(seed: int) -> torch.Tensor:
    """Random values for each token in each context."""
    return torch.randn(7, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of_tokens(values: torch.Tensor) -> torch.Tensor:
    """[7, 3] -> [15, 3], zero after the end."""
    rows = [
        torch.stack([values[CONTEXTS[item[:position]], token] for position, token in enumerate(item)])
        for item in SEQUENCES
    ]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


# The discriminator reads the end of text, or ignores it (score 0); as the only token it is always read.
NUM_READ = {
    "read": torch.tensor([len(item) for item in SEQUENCES]),
    "unread": torch.tensor([len(item) - (item[-1] == END and len(item) > 1) for item in SEQUENCES]),
}


def token_scores(num_read: torch.Tensor) -> torch.Tensor:
    """Token contributions to a score that averages over the tokens read: [15, 3]."""
    scores = of_tokens(3.0 + table(1))  # not centred, so returns without a baseline are mostly noise
    return (scores / num_read[:, None]) * (torch.arange(LENGTH) < num_read[:, None])


def gradients(
    num_rollouts: int,
    parts: torch.Tensor,
    num_read: torch.Tensor | None,
    *overrides: str,
    average: LossAverage = "sequence_sum",
    rewards: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the estimate's expectation over all batches and the gradient of the expected reward.

    ``parts``: token contributions to the score [15, 3]; by default the rewards [15] are their sums.
    """
    settings = load_config(None, ["generator.reinforce.advantage_scale=none", *overrides]).generator.reinforce
    algorithm = Reinforce(settings)
    logits = table(0).requires_grad_()
    logprobs = of_tokens(logits.log_softmax(-1))
    probabilities = logprobs.sum(1).exp().detach()
    assert probabilities.sum().item() == pytest.approx(1.0)
    scores = parts.sum(1) if rewards is None else rewards
    (exact,) = torch.autograd.grad((logprobs.sum(1).exp() * scores).sum(), logits, retain_graph=True)
    leaf = logprobs.detach().clone().requires_grad_()
    found = torch.zeros_like(leaf)
    for batch in itertools.product(range(len(SEQUENCES)), repeat=num_rollouts):
        rows = list(batch)
        tokens = torch.zeros(num_rollouts, LENGTH, dtype=torch.long)
        items = TrainBatch(
            SequenceBatch(tokens, MASK[rows].long(), MASK[rows]),
            behaviour_logprobs=torch.zeros(num_rollouts, LENGTH),
            scores=scores[rows],
            group_size=num_rollouts,
            token_scores=parts[rows],
            num_read=None if num_read is None else num_read[rows],
        )
        advantages = algorithm.advantages(items, scores[rows], torch.zeros(num_rollouts, LENGTH))
        loss, _ = reinforce_loss(leaf[rows], advantages, MASK[rows], average=average)
        found += probabilities[rows].prod() * torch.autograd.grad(loss, leaf)[0]
    (expected,) = torch.autograd.grad((-found * logprobs).sum(), logits)
    return expected, exact


def bias(*arguments: Any, rewards: torch.Tensor | None = None) -> float:
    """Return the norm of the bias relative to the norm of the gradient."""
    expected, exact = gradients(*arguments, rewards=rewards)
    return float((expected - exact).norm() / exact.norm())


@pytest.mark.parametrize("num_rollouts", [2, 3])
def test_position_mean(num_rollouts: int) -> None:
    parts = token_scores(NUM_READ["read"])
    found = bias(num_rollouts, parts, None, "generator.reinforce.credit=sequence")
    assert found < 1e-6


@pytest.mark.parametrize("ends", ["read", "unread"])
@pytest.mark.parametrize("baseline", ["position_mean", "none"])
def test_token_credit(baseline: str, ends: str) -> None:
    num_read = NUM_READ[ends]
    settings = f"generator.reinforce.baseline={baseline}"
    assert bias(2, token_scores(num_read), num_read, settings) < 1e-6


def test_token_credit_with_both_left_out_of_three() -> None:
    num_read = NUM_READ["unread"]
    assert bias(3, token_scores(num_read), num_read) < 1e-6


WHOLE_REWARDS = 5.0 * torch.rand(len(SEQUENCES), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
"""Arbitrary sequence-level rewards, one per response."""


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("ends", ["read", "unread"])
@pytest.mark.parametrize("baseline", ["position_mean", "none"])
def test_token_credit_with_sequence_level_rewards(baseline: str, ends: str, weight: float) -> None:
    """The discriminator's weighted reward per token, and a function's reward at the last token."""
    num_read = NUM_READ[ends]
    parts = weight * token_scores(num_read)
    settings = f"generator.reinforce.baseline={baseline}"
    assert bias(2, parts, num_read, settings, rewards=parts.sum(1) + WHOLE_REWARDS) < 1e-6


def test_a_sequence_level_reward_at_an_earlier_token_is_biased() -> None:
    parts = token_scores(NUM_READ["read"])
    early = parts + torch.nn.functional.pad(WHOLE_REWARDS[:, None], (0, LENGTH - 1))
    assert bias(2, early, NUM_READ["read"], rewards=parts.sum(1) + WHOLE_REWARDS) > 0.01


@pytest.mark.parametrize("baseline", ["leave_one_out", "position_mean"])
def test_full_returns(baseline: str) -> None:
    settings = [
        f"generator.reinforce.{key}" for key in ("credit=sequence", f"baseline={baseline}", "reward_to_go=false")
    ]
    assert bias(2, token_scores(NUM_READ["read"]), None, *settings) < 1e-6


def test_dividing_by_the_own_length_is_biased() -> None:
    """Shows that the tests above can fail: a response's own length reveals whether it is about to end."""
    assert bias(2, token_scores(NUM_READ["unread"]), NUM_READ["read"]) > 0.01


@pytest.mark.parametrize("average", ["token", "sequence"])
def test_other_averages_bias_the_gradient(average: LossAverage) -> None:
    """As stated in their docstring; a constant factor would only change the learning rate."""
    found, exact = gradients(3, token_scores(NUM_READ["read"]), None, average=average)
    assert 0.9 < float(torch.nn.functional.cosine_similarity(found.flatten(), exact.flatten(), dim=0)) < 0.999
