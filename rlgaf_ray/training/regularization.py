"""What keeps a discriminator from memorising: lower layers that stay as they were, and dropout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel

from rlgaf_ray.errors import UserError
from rlgaf_ray.models.generator import blocks_of


def freeze_lower_layers(network: PreTrainedModel, num_frozen: Callable[[int], int]) -> None:
    """Stop the lowest blocks of a transformer, and the embeddings below them, from learning: ``num_frozen(of all)``.

    What warm-up taught them is kept, and fewer weights can follow the newest batch (Mo et al. 2020, "Freeze the
    discriminator", arXiv 2002.10964). Zero freezes nothing, the embeddings neither.
    Raises ``UserError`` where the network has fewer blocks.
    """
    total = getattr(network.config.get_text_config(), "num_hidden_layers", 0)
    num_blocks = num_frozen(total)  # of a network without blocks, none
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
