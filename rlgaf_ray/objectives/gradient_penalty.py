"""Penalties on the discriminator's gradient in what it reads: a steep discriminator teaches noise."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

EPSILON = 1e-12  # under the root: its derivative at a gradient of zero would be infinite


def squared_gradient_norms(
    logits: Float[Tensor, " batch"],
    embeddings: Float[Tensor, "batch time width"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, " batch"]:
    """|d D_i / d e_i|^2, summed over the mask's positions and the width; itself differentiable.

    Row i of the logits must depend on row i of the embeddings alone.
    Shapes: [B], [B, T, W], [B, T] -> [B], in squared logits per squared unit of the embeddings.
    """
    (gradients,) = torch.autograd.grad(logits.sum(), embeddings, create_graph=True)
    return (gradients * mask[..., None]).square().sum((1, 2))


def r1_penalty(squared_norms: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    """On real data: half of the mean squared norm.

    E_real |grad D|^2 / 2

    Mescheder et al. 2018 (arXiv 1801.04406), eq. 9, without its weight. It pulls the slope to zero where the real data
    are, which the equilibrium itself asks for. Shapes: [B] -> scalar.
    """
    return squared_norms.mean() / 2


def unit_norm_penalty(squared_norms: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    """On mixtures of real and generated data: the mean squared distance of the norm from one.

    E_mixtures (|grad D| - 1)^2

    Gulrajani et al. 2017 (WGAN-GP, arXiv 1704.00028), eq. 3, without its weight. Shapes: [B] -> scalar.
    """
    return ((squared_norms + EPSILON).sqrt() - 1.0).square().mean()
