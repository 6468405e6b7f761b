"""What holds the discriminator's weights: a head of bounded slope, and lower layers that stay as they were."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def bound_spectral_norm(layer: nn.Linear) -> float:
    """Scale a layer so that its largest singular value is at most 1; returns the value before.

    W <- W / max(1, sigma(W))

    Spectral normalisation (Miyato et al. 2018, arXiv 1802.05957) as a projection after every step (Gouk et al. 2018,
    arXiv 1804.04368, section 3): the layer's own weight is the bounded one, so that it is scored with, saved and
    exported as it stands.
    """
    sigma = float(torch.linalg.matrix_norm(layer.weight.float(), ord=2))
    if sigma > 1.0:
        layer.weight.div_(sigma)
    return sigma
