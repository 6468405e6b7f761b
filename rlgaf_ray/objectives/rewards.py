"""From the discriminator's logit to the generator's reward."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlgaf_ray.config.reward import RewardCombination, RewardKind


def discriminator_reward(logits: Float[Tensor, " batch"], *, kind: RewardKind) -> Float[Tensor, " batch"]:
    """One reward per sequence from the logit that it is a demonstration.

    - logit: D, unbounded. At the optimum log p_real / p_fake, whose mean over rollouts is -KL(fake || real).
    - probability: sigmoid(D), in (0, 1), SeqGAN's reward (Yu et al. 2017, arXiv 1609.05473, eq. 4).
    - probability_centered: sigmoid(D) - 0.5, in (-0.5, 0.5), the paper's normalised variant. Flat where D is sure.
    - log_probability: log sigmoid(D), in (-inf, 0). Close to D where the discriminator sees through the fake, flat and
      close to zero where it is fooled. Always negative: without a baseline it makes longer sequences worse.
    - zero: the control. KL, entropy bonus and demonstration term are all that is learned from.

    RLGAF (arXiv 2305.06176), section 2.

    Shapes: [B] -> [B], same dtype. Left out: whitening, which needs running statistics (see ``RunningStatistics``).
    """
    return FROM_LOGITS[kind](logits)


FROM_LOGITS: Mapping[RewardKind, Callable[[Tensor], Tensor]] = {
    "logit": lambda logits: logits,
    "probability": torch.sigmoid,
    "probability_centered": lambda logits: logits.sigmoid() - 0.5,
    "log_probability": logsigmoid,
    "zero": torch.zeros_like,
}


def weighted_sum(
    rewards: Float[Tensor, "sources batch"], weights: Float[Tensor, " sources"], given: Bool[Tensor, "sources batch"]
) -> Float[Tensor, " batch"]:
    """sum_s w_s r_s over the rewards that are given: [S, B], [S], [S, B] -> [B]; one that is not given adds 0."""
    return (weights[:, None] * rewards).masked_fill(~given, 0.0).sum(0)


def weighted_product(
    rewards: Float[Tensor, "sources batch"], weights: Float[Tensor, " sources"], given: Bool[Tensor, "sources batch"]
) -> Float[Tensor, " batch"]:
    """prod_s r_s ^ w_s over the rewards that are given: [S, B], [S], [S, B] -> [B]; one that is not given leaves it.

    Rewards and weights of 0 or more: one reward near 0 keeps the product there, whatever the others are. For
    probabilities of independent properties and weights of 1 it is the probability of all of them.
    """
    return (rewards ** weights[:, None]).masked_fill(~given, 1.0).prod(0)


COMBINE: Mapping[RewardCombination, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "sum": weighted_sum,
    "product": weighted_product,
}


def entropy_rewards(
    logprobs: Float[Tensor, "batch time"], response_mask: Bool[Tensor, "batch time"], *, coefficient: float
) -> Float[Tensor, "batch time"]:
    """The entropy bonus as a reward of each sampled token.

    r_t = -coefficient * log pi(y_t | x, y_<t)

    Summed over a response its mean is the entropy of the policy's responses, and as a reward-to-go it has the exact
    gradient of that in expectation: E[sum_t grad log pi_t * sum_{s >= t} -log pi_s], later tokens included (Williams &
    Peng 1991; Haarnoja et al. 2018, arXiv 1801.01290, eq. 1). The same estimate as a term of the loss would have none.
    It is sampled: the sum over the vocabulary would need all logits of the batch at once.

    ``logprobs`` are of the policy that sampled, float [B, T], in nats; they get no gradient. Shapes: [B, T] -> [B, T],
    zero outside the mask, in the reward's unit.
    """
    return -coefficient * logprobs.detach().masked_fill(~response_mask, 0.0)


def base_logprob_rewards(
    base_logprobs: Float[Tensor, "batch time"], response_mask: Bool[Tensor, "batch time"], *, coefficient: float
) -> Float[Tensor, "batch time"]:
    """What the base model already knows, as a reward of each sampled token.

    r_t = coefficient * log p_base(y_t | x, y_<t)

    The base model knows what is legal and grammatical, and a discriminator may be blind to it: it learns what tells
    rollouts from demonstrations, and mistakes that no rollout makes yet are none of that. With ``entropy_rewards`` of
    the same coefficient the two add up to -coefficient * KL(policy || base). Alone, it favours likely and short
    responses.

    ``base_logprobs`` are of the distribution that was sampled from (its temperature and masked tokens), float [B, T],
    in nats. Shapes: [B, T] -> [B, T], zero outside the mask, in the reward's unit.
    """
    return coefficient * base_logprobs.masked_fill(~response_mask, 0.0)


def at_the_end(
    values: Float[Tensor, " batch"], response_mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """Each sequence's value at its last response token, zero elsewhere: [B] -> [B, T].

    The value of a sequence without response tokens appears nowhere.
    """
    positions = torch.arange(response_mask.shape[1], device=response_mask.device)
    last = torch.where(response_mask, positions, -1).amax(1, keepdim=True).clamp(min=0)
    spread = torch.zeros_like(response_mask, dtype=torch.float32).scatter(1, last, values[:, None].float())
    return spread.masked_fill(~response_mask, 0.0)
