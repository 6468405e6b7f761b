"""Map the discriminator's logits to the generator's rewards."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlgaf_ray.config.reward import RewardCombination, RewardKind


def discriminator_reward(logits: Float[Tensor, " batch"], *, kind: RewardKind) -> Float[Tensor, " batch"]:
    """Compute each sequence's reward from its discriminator logit D.

    - logit: D, unbounded. At the optimum log p_real / p_fake, whose mean over rollouts is -KL(fake || real).
    - probability: sigmoid(D), in (0, 1), SeqGAN's reward (Yu et al. 2017, arXiv 1609.05473, eq. 4).
    - probability_centered: sigmoid(D) - 0.5, in (-0.5, 0.5), the paper's normalised variant. It saturates for large
      logits of either sign.
    - log_probability: log sigmoid(D), in (-inf, 0). Close to D for detected fakes, flat near zero when the
      discriminator is fooled. Always negative: without a baseline it penalises longer sequences.
    - zero: the control, which leaves only KL, entropy bonus and demonstration term to learn from.

    RLGAF (arXiv 2305.06176), section 2.

    Shapes: [B] -> [B], same dtype. Whitening is separate because it needs running statistics (``RunningStatistics``).
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
    """Compute sum_s w_s r_s over the given rewards: [S, B], [S], [S, B] -> [B]; a missing reward adds 0."""
    return (weights[:, None] * rewards).masked_fill(~given, 0.0).sum(0)


def weighted_product(
    rewards: Float[Tensor, "sources batch"], weights: Float[Tensor, " sources"], given: Bool[Tensor, "sources batch"]
) -> Float[Tensor, " batch"]:
    """Compute prod_s r_s ^ w_s over the given rewards: [S, B], [S], [S, B] -> [B]; a missing reward counts as 1.

    Rewards and weights must be non-negative; one reward near 0 keeps the product near 0. For probabilities of
    independent properties and weights of 1, the product is the probability that all hold.
    """
    return (rewards ** weights[:, None]).masked_fill(~given, 1.0).prod(0)


COMBINE: Mapping[RewardCombination, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "sum": weighted_sum,
    "product": weighted_product,
}


def entropy_rewards(
    logprobs: Float[Tensor, "batch time"], response_mask: Bool[Tensor, "batch time"], *, coefficient: float
) -> Float[Tensor, "batch time"]:
    """Compute the entropy bonus as a per-token reward.

    r_t = -coefficient * log pi(y_t | x, y_<t)

    Its sum over a response has the entropy of the policy's responses as its mean. As a reward-to-go it gives an
    unbiased gradient of that entropy, E[sum_t grad log pi_t * sum_{s >= t} -log pi_s], later tokens included (Williams
    & Peng 1991; Haarnoja et al. 2018, arXiv 1801.01290, eq. 1). As a loss term the same estimate would have zero
    expected gradient. It is a single-sample estimate: a sum over the vocabulary would need all logits of the batch.

    ``logprobs`` are those of the sampling policy, float [B, T], in nats; they are detached. Shapes: [B, T] -> [B, T],
    zero outside the mask, in reward units.
    """
    return -coefficient * logprobs.detach().masked_fill(~response_mask, 0.0)


def base_logprob_rewards(
    base_logprobs: Float[Tensor, "batch time"], response_mask: Bool[Tensor, "batch time"], *, coefficient: float
) -> Float[Tensor, "batch time"]:
    """Compute the base model's log-prob as a per-token reward.

    r_t = coefficient * log p_base(y_t | x, y_<t)

    The base model prefers legal, grammatical text. A discriminator learns only what separates rollouts from
    demonstrations and is blind to mistakes that no rollout makes yet. Together with ``entropy_rewards`` of the same
    coefficient this is -coefficient * KL(policy || base) in expectation. Alone, it favours likely and short responses.

    ``base_logprobs`` use the temperature and masked tokens of the sampling distribution, float [B, T], in nats.
    Shapes: [B, T] -> [B, T], zero outside the mask, in reward units.
    """
    return coefficient * base_logprobs.masked_fill(~response_mask, 0.0)


def at_the_end(
    values: Float[Tensor, " batch"], response_mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """Place each sequence's value at its last response token, zero elsewhere: [B] -> [B, T].

    The value of a sequence without response tokens is dropped.
    """
    positions = torch.arange(response_mask.shape[1], device=response_mask.device)
    last = torch.where(response_mask, positions, -1).amax(1, keepdim=True).clamp(min=0)
    spread = torch.zeros_like(response_mask, dtype=torch.float32).scatter(1, last, values[:, None].float())
    return spread.masked_fill(~response_mask, 0.0)
