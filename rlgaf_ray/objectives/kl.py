"""Distance between the policy and its frozen reference, and the coefficient that weighs it."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

KLEstimator = Literal["k1", "k2", "k3"]


def kl_estimate(
    policy_logprobs: Float[Tensor, "*shape"],
    reference_logprobs: Float[Tensor, "*shape"],
    *,
    estimator: KLEstimator,
) -> Float[Tensor, "*shape"]:
    """Per-token estimate of KL(policy || reference) from tokens that the policy sampled, in nats.

    With d = log policy - log reference (J. Schulman, "Approximating KL divergence", 2020):

    - k1 = d: unbiased, of high variance, negative at times. Its expected gradient is zero: for rewards, not for losses.
    - k2 = d^2 / 2: biased in value, never negative. Its expected gradient is exactly that of KL(policy || reference).
    - k3 = exp(-d) - 1 + d: unbiased, never negative. Its expected gradient is that of KL(reference || policy).

    Shapes: any, the same for both. Gradients flow into both arguments; pass detached ones where they must not.
    Raises ValueError for an unknown estimator.
    In a loss (k2, k3) these are gradients at fixed prefixes. How a token steers the KL of later ones is left out, as it
    is in verl, TRL and OpenRLHF; a KL in the reward has that part.
    Left out: the correction for tokens that another policy sampled, and the bound of +-10 that OpenRLHF puts on every
    estimate and verl on k3, which grows with exp(-d) where the policy has left a token that the reference likes.
    """
    assert policy_logprobs.shape == reference_logprobs.shape, (policy_logprobs.shape, reference_logprobs.shape)
    difference = policy_logprobs - reference_logprobs
    match estimator:
        case "k1":
            return difference
        case "k2":
            return difference.square() / 2
        case "k3":
            return torch.expm1(-difference) + difference
    raise ValueError(f"unknown KL estimator {estimator!r}: choose k1, k2 or k3")


def exact_kl(
    policy_logprobs: Float[Tensor, "*shape vocabulary"], reference_logprobs: Float[Tensor, "*shape vocabulary"]
) -> Float[Tensor, "*shape"]:
    """KL(policy || reference) of each row, summed over the whole vocabulary, in nats.

    sum_v pi(v) (log pi(v) - log pi_ref(v))

    The Rao-Blackwellised estimate of Amini et al. 2025 (arXiv 2504.10637): exact at a position, sampled in its prefix.
    Unlike the estimates from one token it is differentiable as it stands. Tokens that the policy rules out
    (log-probability of minus infinity) add nothing.
    Shapes: [..., V] twice -> [...]; each row the logarithm of a distribution. Memory: three tensors of that shape.
    """
    assert policy_logprobs.shape == reference_logprobs.shape, (policy_logprobs.shape, reference_logprobs.shape)
    difference = (policy_logprobs - reference_logprobs).masked_fill(policy_logprobs.isneginf(), 0.0)
    return (policy_logprobs.exp() * difference).sum(-1)


def exact_entropy(logprobs: Float[Tensor, "*shape vocabulary"]) -> Float[Tensor, "*shape"]:
    """-sum_v pi(v) log pi(v) of each row, in nats. Shapes: [..., V] -> [...]."""
    return -(logprobs.exp() * logprobs.masked_fill(logprobs.isneginf(), 0.0)).sum(-1)


def adaptive_kl_coefficient(
    coefficient: float, *, observed_kl: float, target: float, num_samples: int, horizon: int
) -> float:
    """The coefficient for the next update, moved so that the observed KL comes nearer to its target.

    coefficient * (1 + clip(observed_kl / target - 1, -0.2, 0.2) * num_samples / horizon)

    Ziegler et al. 2019 (arXiv 1909.08593), section 2.2, in the form of its published code, where the gain K = 0.1 of
    the paper is num_samples / horizon: after ``horizon`` samples at the bound the coefficient has moved by about 20 %.

    Units: ``observed_kl`` and ``target`` in the same one (nats per token, or per sequence); ``num_samples`` and
    ``horizon`` in sequences.
    Raises ValueError for a target or horizon that is not positive, for an observed KL that is not finite, and for more
    samples than five horizons, where the coefficient could turn negative.
    Left out: a floor; a coefficient of zero stays zero.
    """
    if target <= 0 or horizon <= 0:
        raise ValueError(f"the adaptive KL needs a positive target and horizon, got target={target}, horizon={horizon}")
    if not math.isfinite(observed_kl):
        raise ValueError(
            f"the observed KL is {observed_kl}: the policy or its reference gives log-probs that are not finite"
        )
    if num_samples >= 5 * horizon:
        raise ValueError(f"num_samples={num_samples} must stay below 5 x horizon={horizon}: raise the horizon")
    error = min(max(observed_kl / target - 1.0, -0.2), 0.2)
    return coefficient * (1.0 + error * num_samples / horizon)
