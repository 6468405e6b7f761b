"""Preference losses on pairs of a chosen and a rejected response to the same prompt."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlgaf_ray.objectives.policy import TensorMetrics


def dpo_loss(
    chosen_logprobs: Float[Tensor, " pairs"],
    rejected_logprobs: Float[Tensor, " pairs"],
    chosen_reference: Float[Tensor, " pairs"],
    rejected_reference: Float[Tensor, " pairs"],
    *,
    beta: float,
) -> tuple[Float[Tensor, " pairs"], TensorMetrics]:
    """Compute the direct preference optimisation loss of each pair.

    r(y) = beta (log pi(y | x) - log pi_ref(y | x));  loss = -log sigmoid(r(chosen) - r(rejected))

    Rafailov et al. 2023 (arXiv 2305.18290), eq. 7. With a demonstration as the chosen response, a policy sample as the
    rejected one and the sampling policy as the reference, it is SPIN's loss (Chen et al. 2024, arXiv 2401.01335,
    eq. 4.7, lambda = beta, logistic loss).

    Log-probs are summed over the response, in nats. Shapes: [P] each -> ([P], metrics). The reference gets no gradient.
    Metrics, means over the pairs: ``accuracy``, the share of positive margins; ``margin``; ``chosen_reward`` and
    ``rejected_reward``, r of each response.
    """
    chosen = beta * (chosen_logprobs - chosen_reference.detach())
    rejected = beta * (rejected_logprobs - rejected_reference.detach())
    margin = chosen - rejected
    with torch.no_grad():
        metrics = {
            "accuracy": (margin > 0).float().mean(),
            "margin": margin.mean(),
            "chosen_reward": chosen.mean(),
            "rejected_reward": rejected.mean(),
        }
    return -logsigmoid(margin), {name: value.detach() for name, value in metrics.items()}
