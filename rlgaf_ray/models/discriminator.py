"""The interface of the networks that a discriminator trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from rlgaf_ray.models.lora import export_network
from rlgaf_ray.objectives.rewards import at_the_end
from rlgaf_ray.types import SequenceBatch


class DiscriminatorNetwork(nn.Module):
    """Sequences to logits; ``network``, a ``PreTrainedModel``, holds all weights."""

    network: Any  # its heads are no attributes of the type

    @property
    def added_tokens(self) -> int:
        """Tokens that it reads beside prompt and response."""
        return 0

    def forward(self, sequences: SequenceBatch) -> Float[Tensor, " batch"]:
        """The logit that the response is a demonstration, float32 [B]."""
        raise NotImplementedError

    def token_logits(self, sequences: SequenceBatch) -> Float[Tensor, "batch time"]:
        """Each response token's share of the logit, float32 [B, T], zero elsewhere; it sums to ``forward`` over time.

        A network that cannot split its logit puts all of it at the last response token.
        """
        return at_the_end(self(sequences), sequences.response_mask)

    def penalty(self) -> float | Float[Tensor, ""]:
        """A regulariser of the weights that is added to the loss."""
        return 0.0

    def export(self, folder: str | Path, state: dict[str, Tensor] | None = None) -> None:
        """Write a plain Hugging Face folder. ``state``: the full state dict, where this process holds shards."""
        export_network(self.network, folder, state)
