"""Baselines that reduce the variance of the policy gradient with little or no bias.

Response masks may start after the prompt and end early (right padding). Entries outside the mask are ignored, even
NaN, and are zero in every [B, T] result.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlgaf_ray.objectives.advantages import check_fraction, in_groups, masked_moments


def leave_one_out_baseline(rewards: Float[Tensor, " batch"], *, group_size: int) -> Float[Tensor, " batch"]:
    """Return, for each sequence, the mean reward of the other samples of its prompt.

    b_i = (sum_j r_j - r_i) / (group_size - 1)

    Kool et al. 2019 ("Buy 4 REINFORCE samples, get a baseline for free!"); Ahmadian et al. 2024 (RLOO, arXiv
    2402.14740). b_i does not depend on sample i, so the policy gradient stays unbiased.

    Shapes: [B] -> [B]; the ``group_size`` samples of one prompt are adjacent.
    Raises ValueError if ``group_size`` is below two or does not divide the batch.
    """
    if group_size < 2:
        raise ValueError(
            f"a leave-one-out baseline needs at least 2 samples per prompt, got {group_size}: "
            "raise rollout.samples_per_prompt or choose another baseline"
        )
    grouped = in_groups(rewards.double(), group_size)
    return ((grouped.sum(1, keepdim=True) - grouped) / (group_size - 1)).flatten().to(rewards.dtype)


def group_mean_baseline(rewards: Float[Tensor, " batch"], *, group_size: int) -> Float[Tensor, " batch"]:
    """Return, for each sequence, the mean reward of all samples of its prompt, itself included.

    b_i = sum_j r_j / group_size

    GRPO (Shao et al. 2024, arXiv 2402.03300, section 4.1), which then divides by the group's deviation
    (``scale_advantages`` with "group"). r_i - b_i is (n - 1) / n times the leave-one-out advantage.

    Shapes: [B] -> [B]; the samples of one prompt are adjacent.
    Raises ValueError if the batch is not divisible by ``group_size``.
    """
    grouped = in_groups(rewards.double(), group_size)
    return grouped.mean(1).repeat_interleave(group_size).to(rewards.dtype)


def batch_mean_baseline(
    returns: Float[Tensor, "batch time"], response_mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, ""]:
    """Return the mean return of all response tokens in the batch, as in REINFORCE++ (Hu 2025, arXiv 2501.03262).

    REINFORCE++ then divides by the batch's deviation (``scale_advantages`` with "batch"). Each sample is part of its
    own baseline, which biases the gradient by O(1 / number of tokens).

    Shapes: [B, T] -> scalar.
    """
    mean, _ = masked_moments(returns.reshape(1, -1), response_mask.reshape(1, -1))
    return mean.squeeze(0).to(returns.dtype)


def position_mean_baseline(
    returns: Float[Tensor, "batch time"], response_mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """Return the mean return of the other responses at the same position from the start of the response.

    b_it = sum_{j != i} m_jt G_jt / sum_{j != i} m_jt

    The reward-to-go shrinks towards the end of a response; a single baseline for all positions would leave that slope
    in the advantages (Greensmith et al. 2004, JMLR 5, section 3, on state-dependent baselines). Averaging over the
    batch is less noisy than over the few samples of one prompt, but ignores the prompt. Response i is excluded, so the
    policy gradient stays unbiased for responses of any length.

    At positions that no other response reaches, the baseline of the last position that another one reaches is used.
    So the tail of the longest response has a baseline that depends on other responses only (verl's
    ``handle_zero_tail`` uses zero there).

    Shapes: [B, T] twice -> [B, T], zero outside the mask, and all zero for a batch of one response.
    """
    kept = returns.double().masked_fill(~response_mask, 0.0)
    positions = (response_mask.cumsum(1) - 1).clamp(min=0)  # index of each token within its response
    width = response_mask.shape[1]
    sums = kept.new_zeros(width).scatter_add_(0, positions.flatten(), kept.flatten())
    counts = kept.new_zeros(width).scatter_add_(0, positions.flatten(), response_mask.flatten().double())
    others = (counts[positions] - 1).masked_fill(~response_mask, 0.0)
    baseline = (sums[positions] - kept) / others.clamp(min=1)
    columns = torch.arange(width, device=returns.device)
    last = torch.where(others > 0, columns, -1).cummax(1).values
    baseline = torch.where(last >= 0, baseline.gather(1, last.clamp(min=0)), 0.0)
    return baseline.to(returns.dtype).masked_fill(~response_mask, 0.0)


def past_scores(
    token_scores: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    num_read: Int[Tensor, " batch"],
) -> Float[Tensor, "batch time"]:
    """Sum the discriminator's token scores before each position, unnormalised by length.

    P_t = sum_{s < t} N d_s, where D = sum_s d_s is the sequence's score and N the number of tokens it averages

    A causal discriminator that averages token scores over the response is a sum over tokens, and the scores of earlier
    tokens do not depend on token t. Subtracting them from the return of token t leaves the expected policy gradient
    unchanged and lowers its variance (RLGAF, arXiv 2305.06176, eq. 2: the reward-to-go; Williams 1992 on baselines).
    On film reviews this halves the second moment of the advantages (docs/stability.md).

    d_s = s_s / N depends on the response's length, which is unknown at t. P does not; divide it by ``other_lengths``.
    ``num_read`` is N: one less than the response's length if the discriminator does not read the end of text
    (``discriminator.match_lengths``), where d is then zero.
    Shapes: [B, T] twice, int [B] -> [B, T], zero at the first response token and outside the mask.
    """
    scores = torch.where(response_mask, token_scores, 0.0) * num_read[:, None]
    return (scores.cumsum(1) - scores).masked_fill(~response_mask, 0.0)


def other_lengths(lengths: Int[Tensor, " batch"]) -> Float[Tensor, "batch 1"]:
    """Return the mean length of the other responses, [B] -> [B, 1]; infinite for a batch of one."""
    num_others = len(lengths) - 1
    if num_others == 0:
        return torch.full((1, 1), math.inf, device=lengths.device)
    return ((lengths.sum() - lengths) / num_others)[:, None]


def moving_average(previous: float | None, value: float, *, decay: float) -> float:
    """Update an exponential moving average, which starts at its first value.

    m' = decay * m + (1 - decay) * value

    An unbiased baseline for REINFORCE (Williams 1992) only if read before it is updated with the current batch.
    Raises ValueError for a decay outside [0, 1].
    """
    check_fraction("decay", decay)
    return value if previous is None else decay * previous + (1.0 - decay) * value
