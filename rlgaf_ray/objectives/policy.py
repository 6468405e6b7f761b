"""Losses of the generator and of PPO's critic.

All [B, T] arguments are aligned with the tokens (entry t belongs to token t). Entries outside the response mask affect
neither values nor gradients, even if NaN. Losses are minimised. Metrics are detached scalars.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

LossAverage = Literal["token", "sequence", "sequence_sum", "constant"]
RatioLevel = Literal["token", "sequence"]
ImportanceBound = Literal["cap", "mask"]
TensorMetrics = dict[str, Tensor]

# Clamp log ratios before the exponential, as verl and OpenRLHF do: e^20 exceeds any clip range, while e^89 overflows
# float32 and turns the zero gradient of a clipped token into NaN.
MAX_LOG_RATIO = 20.0


def masked_average(
    values: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    *,
    average: LossAverage,
    max_tokens: int | None = None,
) -> Float[Tensor, ""]:
    """Average values over the mask.

    - token: sum of all values / number of tokens. Long responses have more weight.
    - sequence: mean over sequences of the token mean. All responses have equal weight.
    - sequence_sum: mean over sequences of the token sum.
    - constant: ``sequence_sum`` / ``max_tokens``, the maximum response length.

    Only the last two give an unbiased policy gradient: RLGAF (arXiv 2305.06176), eq. 2, is ``sequence_sum``, and Dr.
    GRPO (Liu et al. 2025, arXiv 2503.20783) is ``constant``. ``token`` divides by a sample-dependent number, a bias of
    O(1/B); ``sequence`` weights a response by 1/length at any batch size.

    Shapes: [B, T] -> scalar. Sequences without tokens are not counted; an empty mask gives zero.
    To accumulate over micro-batches, weight each by its number of tokens (token) or sequences (the others).
    Raises ValueError for an unknown average.
    """
    assert values.shape == mask.shape, (values.shape, mask.shape)
    values = torch.where(mask, values, 0.0)
    num_tokens = mask.sum(1)
    match average:
        case "token":
            return values.sum() / num_tokens.sum().clamp(min=1)
        case "sequence":
            return (values.sum(1) / num_tokens.clamp(min=1)).sum() / (num_tokens > 0).sum().clamp(min=1)
        case "sequence_sum":
            return values.sum() / (num_tokens > 0).sum().clamp(min=1)
        case "constant":
            assert max_tokens is not None, "average=constant needs max_tokens"
            return values.sum() / (num_tokens > 0).sum().clamp(min=1) / max_tokens
    raise ValueError(f"unknown average {average!r}: choose token, sequence, sequence_sum or constant")


def reinforce_loss(
    policy_logprobs: Float[Tensor, "batch time"],
    advantages: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    average: LossAverage,
    max_tokens: int | None = None,
    importance_weights: Float[Tensor, "batch time"] | None = None,
) -> tuple[Float[Tensor, ""], TensorMetrics]:
    """Compute the surrogate loss whose gradient is minus the REINFORCE policy gradient estimate.

    loss = -average_t( w_t * A_t * log pi(y_t | x, y_<t) )

    Williams 1992; RLGAF (arXiv 2305.06176), eq. 1-2, where A_t is the reward-to-go minus a baseline.

    Shapes: [B, T] each -> (scalar, metrics). Advantages and weights get no gradient.
    Metrics: ``policy_loss``; ``importance_weight``, the mean weight, if weights are given.
    Raises ValueError for an unknown average.
    The caller adds KL term and entropy bonus. Only the gradient is meaningful, not the value of the loss.
    """
    assert policy_logprobs.shape == advantages.shape == response_mask.shape
    # Mask before multiplying: a NaN in the other factor would make the gradient NaN even where it is multiplied by 0.
    objective = policy_logprobs.masked_fill(~response_mask, 0.0) * advantages.detach()
    metrics: TensorMetrics = {}
    if importance_weights is not None:
        objective = objective * importance_weights.detach()
        metrics["importance_weight"] = masked_average(importance_weights.detach(), response_mask, average="token")
    loss = -masked_average(objective, response_mask, average=average, max_tokens=max_tokens)
    return loss, {"policy_loss": loss.detach(), **metrics}


def ppo_policy_loss(
    policy_logprobs: Float[Tensor, "batch time"],
    old_logprobs: Float[Tensor, "batch time"],
    advantages: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    clip_range: float,
    clip_range_high: float | None = None,
    average: LossAverage,
    max_tokens: int | None = None,
    ratio_level: RatioLevel = "token",
    importance_weights: Float[Tensor, "batch time"] | None = None,
) -> tuple[Float[Tensor, ""], TensorMetrics]:
    """Compute PPO's clipped surrogate loss.

    r_t = exp(log pi - log pi_old);  loss = -average_t( w_t * min(r_t * A_t, clip(r_t, 1 - c, 1 + h) * A_t) )

    c is ``clip_range``; h is ``clip_range_high``, or c if that is None (asymmetric: DAPO, Yu et al. 2025, arXiv
    2503.14476, section 3.1). Schulman et al. 2017 (arXiv 1707.06347), eq. 7; the reinforcement-learning part of
    InstructGPT's objective (arXiv 2203.02155, eq. 2; RLGAF, eq. 3) if the rewards include the KL to the reference.

    With ``ratio_level`` "sequence" all tokens of a response share one ratio, the geometric mean of the token ratios
    (GSPO, Zheng et al. 2025, arXiv 2507.18071), so a response is clipped as a unit. GSPO itself uses one advantage per
    response and ``average`` "sequence"; other advantages or averages are not a published method.

    ``old_logprobs`` are the learner's own at the start of the batch, so the ratio starts at exactly one.
    ``importance_weights`` correct for the mismatch between the learner and the engine that sampled.
    Shapes: [B, T] each -> (scalar, metrics). Only ``policy_logprobs`` gets a gradient.
    Metrics: ``policy_loss``; ``clip_fraction``, the share of clipped tokens, which get no gradient; ``ratio``, the
    mean; ``approximate_kl``, the k3 estimate of KL(old || new) in nats per token, from token ratios at either level;
    ``importance_weight``, the mean weight, if weights are given.
    Raises ValueError for a clip range that is not positive or an unknown average.
    Not included: the dual clip for negative advantages and early stopping on the KL.
    """
    high = clip_range if clip_range_high is None else clip_range_high
    if min(clip_range, high) <= 0:
        raise ValueError(f"clip_range={min(clip_range, high)} must be positive: zero would clip every token's gradient")
    assert policy_logprobs.shape == old_logprobs.shape == advantages.shape == response_mask.shape
    # Mask before the exponential: an overflow outside the response would turn its zero gradient into NaN.
    token_log_ratio = torch.where(response_mask, policy_logprobs - old_logprobs.detach(), 0.0)
    log_ratio = token_log_ratio
    if ratio_level == "sequence":
        mean = log_ratio.sum(1, keepdim=True) / response_mask.sum(1, keepdim=True).clamp(min=1)
        log_ratio = torch.where(response_mask, mean, 0.0)
    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    advantages = advantages.detach()
    unclipped = ratio * advantages
    clipped = ratio.clamp(1.0 - clip_range, 1.0 + high) * advantages
    objective = torch.minimum(unclipped, clipped)
    metrics: TensorMetrics = {}
    if importance_weights is not None:
        objective = objective * importance_weights.detach()
        metrics["importance_weight"] = masked_average(importance_weights.detach(), response_mask, average="token")
    loss = -masked_average(objective, response_mask, average=average, max_tokens=max_tokens)
    with torch.no_grad():
        moved = token_log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        metrics |= {
            "policy_loss": loss.detach(),
            "clip_fraction": masked_average((clipped < unclipped).to(ratio), response_mask, average="token"),
            "ratio": masked_average(ratio, response_mask, average="token"),
            "approximate_kl": masked_average(torch.expm1(moved) - moved, response_mask, average="token"),
        }
    return loss, metrics


def ppo_value_loss(
    values: Float[Tensor, "batch time"],
    old_values: Float[Tensor, "batch time"],
    returns: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    value_clip_range: float,
    average: LossAverage,
    max_tokens: int | None = None,
) -> tuple[Float[Tensor, ""], TensorMetrics]:
    """Compute the critic's squared error, clipped around its values at the start of the batch.

    V_clip = V_old + clip(V - V_old, -c, c);  loss = average_t( max((V - R)^2, (V_clip - R)^2) / 2 )

    Half the squared error of Schulman et al. 2017 (arXiv 1707.06347), eq. 9. The clipping is from OpenAI's PPO code and
    the code of Ziegler et al. 2019 (arXiv 1909.08593), not from the PPO paper.

    Shapes: [B, T] each -> (scalar, metrics), in squared reward units. Only ``values`` gets a gradient.
    Metrics: ``value_loss``; ``value_clip_fraction``, the share of clipped tokens; ``explained_variance``,
    1 - Var(R - V) / Var(R) over the response tokens: 1 is perfect, 0 no better than a constant; 0 if Var(R) is 0.
    Raises ValueError for a clip range that is not positive or an unknown average.
    """
    if value_clip_range <= 0:
        raise ValueError(f"value_clip_range={value_clip_range} must be positive: zero would freeze the critic")
    assert values.shape == old_values.shape == returns.shape == response_mask.shape
    values = values.masked_fill(~response_mask, 0.0)  # first, so that a NaN elsewhere cannot reach its gradient
    old_values, returns = old_values.detach(), returns.detach()
    clipped_values = old_values + (values - old_values).clamp(-value_clip_range, value_clip_range)
    unclipped = (values - returns).square()
    clipped = (clipped_values - returns).square()
    errors = torch.maximum(unclipped, clipped)
    loss = masked_average(errors, response_mask, average=average, max_tokens=max_tokens) / 2
    with torch.no_grad():
        metrics = {
            "value_loss": loss.detach(),
            "value_clip_fraction": masked_average((clipped > unclipped).to(values), response_mask, average="token"),
            "explained_variance": _explained_variance(values[response_mask], returns[response_mask]),
        }
    return loss, metrics


def truncated_importance_weights(
    policy_logprobs: Float[Tensor, "batch time"],
    behaviour_logprobs: Float[Tensor, "batch time"],
    *,
    cap: float,
    bound: ImportanceBound = "cap",
) -> Float[Tensor, "batch time"]:
    """Compute per-token importance weights for tokens sampled by an engine of other precision or by an older policy.

    r_t = exp(log pi - log pi_behaviour)
    - cap:  w_t = min(r_t, cap)
    - mask: w_t = r_t where r_t <= cap, else 0

    cap: Ionides 2008 ("Truncated importance sampling"); for stale policies the weight rho of IMPALA (Espeholt et al.
    2018, arXiv 1802.01561, section 4). It trades a small bias for bounded variance.
    mask: the upper bound of IcePop (Ling Team 2025, arXiv 2510.18855), which drops tokens whose two probabilities
    differ too much instead of down-weighting them.

    Shapes: [B, T] each -> [B, T], detached; one where both log-probs are zero (padding).
    Raises ValueError for a cap that is not positive, for a mask below 1, or an unknown bound.
    Not included: the product over a sequence, whose variance grows with its length, and IcePop's lower bound, below
    which a token's weight is small anyway.
    """
    if cap <= 0:
        raise ValueError(
            f"the cap of importance weights is {cap}: set a positive number such as 2, or none to disable them"
        )
    assert policy_logprobs.shape == behaviour_logprobs.shape
    ratio = (policy_logprobs - behaviour_logprobs).detach().exp()
    match bound:
        case "cap":
            return ratio.clamp(max=cap)
        case "mask":
            if cap < 1:
                raise ValueError(f"a mask at {cap} would drop even tokens of an unchanged policy: set 1.5 or 2")
            return torch.where(ratio <= cap, ratio, 0.0)
    raise ValueError(f"unknown bound {bound!r}: choose cap or mask")


def language_model_loss(logprobs: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]) -> Float[Tensor, ""]:
    """Compute the mean negative log-likelihood per token in nats, the pretraining term of PPO-ptx.

    loss = -average_t( log pi(x_t | x_<t) )

    Ouyang et al. 2022 (InstructGPT, arXiv 2203.02155), eq. 2, last term without its gamma; RLGAF, eq. 3.
    Shapes: [B, T] each -> scalar.
    """
    return -masked_average(logprobs, mask, average="token")


def _explained_variance(values: Tensor, returns: Tensor) -> Tensor:
    """Compute 1 - Var(R - V) / Var(R), or 0 if Var(R) is 0: [N], [N] -> scalar."""
    if not returns.numel():
        return torch.zeros((), device=returns.device)
    total = returns.var(correction=0)
    return torch.where(total > 0, 1.0 - (returns - values).var(correction=0) / total, 0.0)
