"""Turn rewards into advantages: rewards-to-go, generalised advantage estimation, scaling and whitening.

Response masks may start after the prompt and end early (right padding). Entries outside the mask are ignored, even
NaN, and are zero in every [B, T] result.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

AdvantageScale = Literal["none", "batch", "group"]

# Smallest standard deviation to divide by. Below it differences are rounding errors, which a division would amplify.
EPSILON = 1e-6


def rewards_to_go(
    rewards: Float[Tensor, "batch time"], response_mask: Bool[Tensor, "batch time"], *, discount: float
) -> Float[Tensor, "batch time"]:
    """Sum the discounted rewards from each response token to the end of its response.

    G_t = r_t + discount * G_{t+1}, and zero after the last response token

    Williams 1992 (REINFORCE); RLGAF (arXiv 2305.06176), eq. 2.

    Shapes: [B, T] -> [B, T], in reward units. Each contiguous run of the mask is a separate response.
    Raises ValueError for a discount outside [0, 1].
    """
    check_fraction("discount", discount)
    assert rewards.shape == response_mask.shape, (rewards.shape, response_mask.shape)
    return _discounted_sum(rewards, response_mask, discount)


def generalized_advantage_estimate(
    rewards: Float[Tensor, "batch time"],
    values: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    discount: float,
    gae_lambda: float,
) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time"]]:
    """Compute the advantages of the response tokens and the returns that the critic regresses on.

    delta_t = r_t + discount * V_{t+1} - V_t;  A_t = delta_t + discount * gae_lambda * A_{t+1};  returns = A + V

    Schulman et al. 2015 (arXiv 1506.02438), eq. 16, in its recursive form.

    ``values[:, t]`` is the critic's value of the state in which token t is sampled (prompt and tokens before t).
    Shapes: [B, T] each -> two of [B, T], in reward units, both detached.
    Raises ValueError for a discount or lambda outside [0, 1].
    A response truncated at its maximum length is not bootstrapped: the discriminator scores the truncated text, so its
    last token is terminal and the value after it is zero.
    """
    check_fraction("discount", discount)
    check_fraction("gae_lambda", gae_lambda)
    assert rewards.shape == values.shape == response_mask.shape, (rewards.shape, values.shape, response_mask.shape)
    values = values.detach().masked_fill(~response_mask, 0.0)
    next_values = torch.nn.functional.pad(values[:, 1:], (0, 1))
    deltas = rewards.detach() + discount * next_values - values
    advantages = _discounted_sum(deltas, response_mask, discount * gae_lambda)
    return advantages, advantages + values


def scale_advantages(
    advantages: Float[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch time"],
    *,
    scale: AdvantageScale,
    group_size: int,
) -> Float[Tensor, "batch time"]:
    """Divide the advantages by a standard deviation, without centring them (the baseline does that).

    A / (deviation + 1e-6), with ``scale`` selecting the deviation:

    - none: no division, A is returned unchanged;
    - batch: over the advantages of all response tokens in the batch, dividing by n;
    - group: over the sequences of one prompt, each represented by the mean advantage of its response tokens, as GRPO
      divides by the deviation of a group's rewards (arXiv 2402.03300, section 4.1). It divides by n - 1, as verl, TRL
      and OpenRLHF do; the paper does not specify this.

    A deviation below 1e-6 (all values equal, or a single sequence) carries no preference: the result is zero.

    Shapes: [B, T] -> [B, T], dimensionless; the samples of one prompt are adjacent.
    Raises ValueError for an unknown scale and, for "group", if the batch is not divisible by ``group_size``.
    """
    assert advantages.shape == response_mask.shape, (advantages.shape, response_mask.shape)
    advantages = advantages.masked_fill(~response_mask, 0.0)
    match scale:
        case "none":
            return advantages
        case "batch":
            _, variance = masked_moments(advantages.reshape(1, -1), response_mask.reshape(1, -1))
        case "group":
            sequence_values, _ = masked_moments(advantages, response_mask)
            present = in_groups(response_mask.any(1), group_size)
            _, variance = masked_moments(in_groups(sequence_values, group_size), present)
            num_sequences = present.sum(1)
            variance = variance * num_sequences / (num_sequences - 1).clamp(min=1)
        case _:
            raise ValueError(f"unknown advantage scale {scale!r}: choose none, batch or group")
    deviation = variance.sqrt().to(advantages.dtype).repeat_interleave(len(advantages) // len(variance))[:, None]
    return torch.where(deviation > EPSILON, advantages / (deviation + EPSILON), 0.0)


def whiten(
    values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], *, shift_mean: bool = True
) -> Float[Tensor, "*shape"]:
    """Scale values to unit variance over the mask and, with ``shift_mean``, to zero mean.

    (x - mean) / sqrt(variance + 1e-8), plus mean if ``shift_mean`` is False

    As in the code of Ziegler et al. 2019 (arXiv 1909.08593); the variance divides by n. Equal values give zeros (or the
    mean). Shapes: any, the same for both; zero outside the mask.
    """
    assert values.shape == mask.shape, (values.shape, mask.shape)
    mean, variance = masked_moments(values.reshape(1, -1), mask.reshape(1, -1))
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    return (whitened if shift_mean else whitened + mean).to(values.dtype).masked_fill(~mask, 0.0)


class RunningStatistics:
    """Running mean and standard deviation of a stream of values.

    delta = mean_b - mean;  mean' = mean + delta * n_b / n;  M2' = M2 + M2_b + delta^2 * n_a * n_b / n;  n = n_a + n_b

    Chan, Golub and LeVeque 1979 (Welford 1962 in batches), in float64. The deviation is sqrt(M2 / n).
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self.sum_of_squares = 0.0  # of the deviations from the mean (M2)

    def update(self, values: Tensor) -> None:
        """Add values of any shape. Raises ValueError if one is non-finite: it would corrupt the statistics for good."""
        chunk = values.detach().double().flatten()
        if not chunk.numel():
            return
        if not bool(chunk.isfinite().all()):
            raise ValueError("running statistics received a non-finite value: check the rewards that enter them")
        count, chunk_mean = self.count + chunk.numel(), float(chunk.mean())
        delta = chunk_mean - self.mean
        self.sum_of_squares += float((chunk - chunk_mean).square().sum())
        self.sum_of_squares += delta * delta * self.count * chunk.numel() / count
        self.mean += delta * chunk.numel() / count
        self.count = count

    @property
    def deviation(self) -> float:
        """Standard deviation of all values so far, dividing by n."""
        assert self.count > 0, "call update before reading the deviation"
        return math.sqrt(self.sum_of_squares / self.count)

    def whiten(self, values: Tensor) -> Tensor:
        """Return (x - mean) / max(deviation, 1e-6) with the current statistics."""
        return (values - self.mean) / max(self.deviation, EPSILON)

    def state_dict(self) -> dict[str, float]:
        """Return plain numbers that survive a JSON round trip exactly."""
        return {"count": self.count, "mean": self.mean, "sum_of_squares": self.sum_of_squares}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore what ``state_dict`` returned."""
        self.count = int(state["count"])
        self.mean = float(state["mean"])
        self.sum_of_squares = float(state["sum_of_squares"])


def _discounted_sum(values: Tensor, mask: Tensor, discount: float) -> Tensor:
    """Compute S_t = values_t + discount * S_{t+1} inside the mask, zero outside: [B, T] -> [B, T]."""
    columns: list[Tensor] = []
    running = torch.zeros_like(values[:, 0])
    for step in reversed(range(values.shape[1])):
        running = torch.where(mask[:, step], values[:, step] + discount * running, 0.0)
        columns.append(running)
    return torch.stack(columns[::-1], dim=1)


def masked_moments(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's mean and variance (dividing by n) over the mask, in float64 so equal values give exactly 0."""
    values = values.double().masked_fill(~mask, 0.0)
    count = mask.sum(1).clamp(min=1)
    mean = values.sum(1) / count
    distances = (values - mean[:, None]).masked_fill(~mask, 0.0)
    return mean, distances.square().sum(1) / count


def in_groups(values: Tensor, group_size: int) -> Tensor:
    """Reshape [B] to [B / group_size, group_size]."""
    if group_size < 1 or len(values) % group_size:
        raise ValueError(f"a batch of {len(values)} sequences is not divisible by group_size={group_size}")
    return values.reshape(-1, group_size)


def check_fraction(name: str, value: float) -> None:
    """Raise ValueError unless ``value`` is in [0, 1]."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name}={value} must be between 0 and 1")
