"""KL divergence from the policy to its frozen reference, and the adaptive KL coefficient."""

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
    """Estimate KL(policy || reference) per token, in nats, from tokens that the policy sampled.

    With d = log policy - log reference (J. Schulman, "Approximating KL divergence", 2020):

    - k1 = d: unbiased, high variance, sometimes negative. Its expected gradient is zero: use it in rewards, not losses.
    - k2 = d^2 / 2: biased in value, never negative. Its expected gradient is exactly that of KL(policy || reference).
    - k3 = exp(-d) - 1 + d: unbiased, never negative. Its expected gradient is that of KL(reference || policy).

    Shapes: any, the same for both. Gradients flow into both arguments; detach those that should get none.
    Raises ValueError for an unknown estimator.
    In a loss (k2, k3) the gradients are for fixed prefixes: like verl, TRL and OpenRLHF, they ignore a token's effect
    on the KL of later tokens. A KL in the reward includes it.
    Not included: the off-policy correction for tokens sampled by another policy, and the clamp to +-10 that OpenRLHF
    applies to every estimate and verl to k3, which grows like exp(-d) for tokens the reference prefers to the policy.
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
    """Compute KL(policy || reference) of each row, summed over the full vocabulary, in nats.

    sum_v pi(v) (log pi(v) - log pi_ref(v))

    The Rao-Blackwellised estimate of Amini et al. 2025 (arXiv 2504.10637): exact at each position given the sampled
    prefix. Unlike single-token estimates it can be differentiated directly. Tokens with a policy log-probability of
    minus infinity add nothing.
    Shapes: [..., V] twice -> [...]; rows are normalised log-probabilities. Memory: three tensors of shape [..., V].
    """
    assert policy_logprobs.shape == reference_logprobs.shape, (policy_logprobs.shape, reference_logprobs.shape)
    difference = (policy_logprobs - reference_logprobs).masked_fill(policy_logprobs.isneginf(), 0.0)
    return (policy_logprobs.exp() * difference).sum(-1)


def exact_entropy(logprobs: Float[Tensor, "*shape vocabulary"]) -> Float[Tensor, "*shape"]:
    """Compute -sum_v pi(v) log pi(v) of each row, in nats. Shapes: [..., V] -> [...]."""
    return -(logprobs.exp() * logprobs.masked_fill(logprobs.isneginf(), 0.0)).sum(-1)


def adaptive_kl_coefficient(
    coefficient: float, *, observed_kl: float, target: float, num_samples: int, horizon: int
) -> float:
    """Adjust the KL coefficient so that the observed KL moves towards its target.

    coefficient * (1 + clip(observed_kl / target - 1, -0.2, 0.2) * num_samples / horizon)

    Ziegler et al. 2019 (arXiv 1909.08593), section 2.2, as in its published code, where num_samples / horizon replaces
    the paper's gain K = 0.1: after ``horizon`` samples at the clip bound the coefficient has moved by about 20 %.

    Units: ``observed_kl`` and ``target`` share one (nats per token, or per sequence); ``num_samples`` and ``horizon``
    are in sequences.
    Raises ValueError for a target or horizon that is not positive, for a non-finite observed KL, and for
    num_samples >= 5 * horizon, where the coefficient could become negative.
    There is no lower bound; a coefficient of zero stays zero.
    """
    if target <= 0 or horizon <= 0:
        raise ValueError(f"the adaptive KL needs a positive target and horizon, got target={target}, horizon={horizon}")
    if not math.isfinite(observed_kl):
        raise ValueError(f"the observed KL is {observed_kl}: the policy or its reference produces non-finite log-probs")
    if num_samples >= 5 * horizon:
        raise ValueError(f"num_samples={num_samples} must be below 5 x horizon={horizon}: raise the horizon")
    error = min(max(observed_kl / target - 1.0, -0.2), 0.2)
    return coefficient * (1.0 + error * num_samples / horizon)
