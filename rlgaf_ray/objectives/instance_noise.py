"""Instance noise: Gaussian noise on what the discriminator reads while it learns."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def instance_noise_scale(step: int, *, start: float, num_steps: int) -> float:
    """The noise's relative deviation at an update (from 0): linear from ``start`` down to 0 at ``num_steps``.

    start * max(0, 1 - step / num_steps)

    Annealed as in Sønderby et al. 2016 (arXiv 1610.04490), section 3.2. Without unit.
    """
    return start * max(0.0, 1.0 - step / num_steps)


def add_instance_noise(
    embeddings: Float[Tensor, "batch time width"], mask: Bool[Tensor, "batch time"], *, scale: float
) -> Float[Tensor, "batch time width"]:
    """Embeddings with independent noise at every position of the mask, drawn from torch's random state.

    e' = e + scale * rms * n,  n ~ N(0, I),  rms = sqrt(mean e^2) over the mask's positions

    Real and generated text are discrete and lie apart, so that a discriminator can be sure of both and its ratio means
    nothing; smeared, the two overlap (Sønderby et al. 2016, arXiv 1610.04490, section 3.2; Arjovsky & Bottou 2017,
    arXiv 1701.04862, section 3). Measured in the embeddings' own size, one scale serves every model.

    Shapes: [B, T, W], [B, T] -> [B, T, W], in the embeddings' unit; the gradient passes through, ``rms`` has none.
    """
    rms = embeddings.detach()[mask].square().mean().sqrt()
    return embeddings + scale * rms * mask[..., None] * torch.randn_like(embeddings)
