"""What holds the discriminator's weights: a head of bounded slope, and lower layers that stay as they were."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from rlgaf_ray.models.generator import blocks_of
from rlgaf_ray.training.distributed import whole


@torch.no_grad()
def bound_spectral_norm(layer: nn.Linear) -> float:
    """Scale a layer so that its largest singular value is at most 1; returns the value before.

    W <- W / max(1, sigma(W))

    Spectral normalisation (Miyato et al. 2018, arXiv 1802.05957) as a projection after every step (Gouk et al. 2018,
    arXiv 1804.04368, section 3): the layer's own weight is the bounded one, so that it is scored with, saved and
    exported as it stands.
    """
    weight = whole(layer.weight).float()
    sigma = float(torch.linalg.matrix_norm(weight, ord=2))
    if sigma > 1.0:
        layer.weight.div_(sigma)
    return sigma


def freeze_lower_layers(network: PreTrainedModel, num_blocks: int) -> None:
    """Stop the lowest blocks of a transformer, and the embeddings below them, from learning.

    What warm-up taught them is kept, and fewer weights can follow the newest batch (Mo et al. 2020, "Freeze the
    discriminator", arXiv 2002.10964). Zero freezes nothing, the embeddings neither.
    Raises ValueError where the network has fewer blocks.
    """
    total = network.config.get_text_config().num_hidden_layers
    check_frozen_layers(num_blocks, total)
    if num_blocks == 0:
        return
    embeddings = [part for part in network.base_model.children() if isinstance(part, nn.Embedding)]
    for part in (*blocks_of(network)[:num_blocks], *embeddings):
        part.requires_grad_(False)


def check_frozen_layers(num_blocks: int, total: int) -> None:
    if num_blocks > total:
        raise ValueError(f"discriminator.frozen_layers={num_blocks}, but the model has {total}: freeze at most so many")
