"""What holds the discriminator's weights: a head of bounded slope, and lower layers that stay as they were."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel


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
    parts = list(network.base_model.children())
    (blocks,) = (part for part in parts if isinstance(part, nn.ModuleList) and len(part) == total)
    for part in (*blocks[:num_blocks], *(part for part in parts if isinstance(part, nn.Embedding))):
        part.requires_grad_(False)


def check_frozen_layers(num_blocks: int, total: int) -> None:
    if num_blocks > total:
        raise ValueError(f"discriminator.frozen_layers={num_blocks}, but the model has {total}: freeze at most so many")
