"""Metrics of a policy update: estimates per micro-batch, and their weighted means over a batch."""

from __future__ import annotations

import torch

from rlgaf_ray.objectives.kl import kl_estimate
from rlgaf_ray.objectives.policy import masked_average
from rlgaf_ray.training.distributed import SINGLE_PROCESS, Group
from rlgaf_ray.types import Metrics


class MetricSums:
    """Accumulates weighted means of metrics over micro-batches."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.shares: dict[str, float] = {}

    def add(self, metrics: dict[str, torch.Tensor], share: float) -> None:
        """Add a micro-batch's metrics with its weight."""
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, torch.zeros(())) + value.detach() * share
            self.shares[name] = self.shares.get(name, 0.0) + share

    def means(self, group: Group = SINGLE_PROCESS) -> Metrics:
        """Return the means over the micro-batches of all ranks, which must have the same metric names."""
        names = sorted(self.sums) if group.size > 1 else list(self.sums)
        sums = group.sum_numbers(float(self.sums[name]) for name in names)
        shares = group.sum_numbers(self.shares[name] for name in names)
        return {name: value / share for name, value, share in zip(names, sums, shares, strict=True)}


@torch.no_grad()
def policy_metrics(
    logprobs: torch.Tensor, reference: torch.Tensor, behaviour: torch.Tensor, response_mask: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Estimate KL, entropy and engine mismatch of the policy from the sampled tokens, in nats per token.

    ``kl`` (k1) and ``entropy`` are means over the same tokens, so they add up to the tokens' NLL under the reference,
    whichever policy sampled them.
    """

    def mean(values: torch.Tensor) -> torch.Tensor:
        return masked_average(values, response_mask, average="token")

    return {
        "kl": mean(kl_estimate(logprobs, reference, estimator="k1")),
        "kl_k3": mean(kl_estimate(logprobs, reference, estimator="k3")),
        "entropy": mean(-logprobs),
        "engine_logprob_gap": mean((logprobs - behaviour).abs()),
    }
