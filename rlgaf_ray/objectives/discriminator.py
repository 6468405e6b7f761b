"""The discriminator's loss."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from rlgaf_ray.objectives.policy import TensorMetrics


def binary_cross_entropy_loss(
    real_logits: Float[Tensor, " real"],
    fake_logits: Float[Tensor, " fake"],
    *,
    contrast_logits: Float[Tensor, " contrast"] | None = None,
    contrast_weight: float = 0.0,
) -> tuple[Float[Tensor, ""], TensorMetrics]:
    """Binary cross-entropy on demonstrations (1) and rollouts (0) and, weighted, on unwanted demonstrations (0).

    loss = (mean softplus(-D(real)) + mean softplus(D(fake)) + w * mean softplus(D(contrast))) / (2 + w)

    where softplus(-D) = -log sigmoid(D) and softplus(D) = -log(1 - sigmoid(D)); without contrast w is 0 and the two are
    averaged, as in RLGAF (arXiv 2305.06176), section 2. Each kind is a mean of its own, so unequal counts do not tilt
    the loss. The optimum is D = log p_real / p_fake (Goodfellow et al. 2014, arXiv 1406.2661, proposition 1), and with
    contrast D = log p_real / (p_fake + w * p_contrast): what is unwanted keeps a low score even once the rollouts match
    the demonstrations.

    Shapes: logits [N], [M], [K] -> (scalar in nats, metrics). Softplus keeps large logits from overflowing.
    Metrics: ``loss_real``, ``loss_fake``; ``accuracy_real``, the share with D > 0; ``accuracy_fake``, the share with
    D <= 0; ``accuracy``, the mean of the two; ``logit_real``, ``logit_fake``, the means; with contrast also
    ``loss_contrast``, ``accuracy_contrast`` and ``logit_contrast`` (not part of ``accuracy``).
    Raises ValueError for an empty set of logits, a negative weight, or a weight without contrast.
    Left out: label smoothing and gradient penalties.
    """
    if contrast_weight < 0:
        raise ValueError(f"contrast_weight={contrast_weight} must not be negative")
    if contrast_weight > 0 and contrast_logits is None:
        raise ValueError(f"contrast_weight={contrast_weight} needs contrast_logits: give them, or set the weight to 0")
    parts = {"real": real_logits, "fake": fake_logits}
    if contrast_logits is not None:
        parts["contrast"] = contrast_logits
    weights = {"real": 1.0, "fake": 1.0, "contrast": contrast_weight}

    losses: dict[str, Tensor] = {}
    metrics: TensorMetrics = {}
    for name, logits in parts.items():
        if not logits.numel():
            raise ValueError(f"the discriminator's update holds no {name} sequences: raise its batch size")
        is_real = name == "real"
        losses[name] = softplus(-logits if is_real else logits).mean()
        metrics[f"loss_{name}"] = losses[name].detach()
        metrics[f"logit_{name}"] = logits.detach().mean()
        metrics[f"accuracy_{name}"] = ((logits > 0) == is_real).float().mean()
    metrics["accuracy"] = (metrics["accuracy_real"] + metrics["accuracy_fake"]) / 2

    total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
    return total / (2.0 + contrast_weight), metrics
