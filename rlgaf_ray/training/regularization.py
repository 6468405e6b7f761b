"""Regularisation against memorisation: frozen lower layers and dropout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel

from rlgaf_ray.errors import UserError
from rlgaf_ray.models.generator import blocks_of


def freeze_lower_layers(network: PreTrainedModel, num_frozen: Callable[[int], int]) -> None:
    """Freeze the lowest ``num_frozen(number of blocks)`` blocks of a transformer and its embeddings.

    Keeps the features learned in warm-up and reduces the capacity to fit the newest batch (Mo et al. 2020, "Freeze the
    discriminator", arXiv 2002.10964). Zero freezes nothing, not even the embeddings.
    Raises ``UserError`` if the network has fewer blocks.
    """
    total = getattr(network.config.get_text_config(), "num_hidden_layers", 0)
    num_blocks = num_frozen(total)  # 0 for a network without blocks
    if num_blocks == 0:
        return
    check_frozen_layers(num_blocks, total)
    blocks = blocks_of(network)
    if not blocks:
        raise UserError(
            f"discriminator.frozen_layers={num_blocks}, but {type(network).__name__} has no list of layers: "
            "set discriminator.frozen_layers=0"
        )
    inside = {part for block in blocks for part in block.modules()}
    embeddings = [
        part for part in network.base_model.modules() if isinstance(part, nn.Embedding) and part not in inside
    ]
    for part in (*blocks[:num_blocks], *embeddings):
        part.requires_grad_(False)


def check_frozen_layers(num_blocks: int, total: int) -> None:
    """Raise ``UserError`` if more blocks are to be frozen than the model has."""
    if num_blocks > total:
        raise UserError(f"discriminator.frozen_layers={num_blocks}, but the model has {total}: set at most {total}")


@contextmanager
def dropout_of(network: nn.Module, rate: float) -> Iterator[None]:
    """Enable dropout with ``rate`` inside the context, in all dropout layers; outside dropout is off.

    Covers attention that reads its rate from an attribute (Llama's ``attention_dropout``).
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
            reader.attention_dropout = rate  # type: ignore[assignment]
        yield
    finally:
        for layer in layers:
            layer.p = 0.0
        for reader in attention:
            reader.attention_dropout = 0.0  # type: ignore[assignment]
        network.train(was_training)
