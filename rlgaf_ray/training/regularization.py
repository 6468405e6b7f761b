"""What holds weights: a head of bounded slope, lower layers that stay as they were, dropout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from rlgaf_ray.errors import UserError
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
    Raises ``UserError`` where the network has fewer blocks.
    """
    if num_blocks == 0:
        return
    check_frozen_layers(num_blocks, network.config.get_text_config().num_hidden_layers)
    embeddings = [part for part in network.base_model.children() if isinstance(part, nn.Embedding)]
    for part in (*blocks_of(network)[:num_blocks], *embeddings):
        part.requires_grad_(False)


def check_frozen_layers(num_blocks: int, total: int) -> None:
    if num_blocks > total:
        raise UserError(f"discriminator.frozen_layers={num_blocks}, but the model has {total}: freeze at most so many")


@contextmanager
def dropout_of(network: nn.Module, rate: float) -> Iterator[None]:
    """Inside, every dropout layer of the network drops ``rate`` of its entries; outside they drop none.

    A network whose attention reads its rate from an attribute (Llama's ``attention_dropout``) drops there, too.
    """
    if rate == 0:
        yield
        return
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Dropout)]
    attention = [layer for layer in network.modules() if isinstance(getattr(layer, "attention_dropout", None), float)]
    was_training = network.training
    network.train()
    try:
        for layer in layers:
            layer.p = rate
        for reader in attention:
            reader.attention_dropout = rate  # type: ignore[assignment]  # a number, on a module
        yield
    finally:
        for layer in layers:
            layer.p = 0.0
        for reader in attention:
            reader.attention_dropout = 0.0  # type: ignore[assignment]
        network.train(was_training)
