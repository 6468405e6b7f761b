"""The interface of discriminator networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from rlgaf_ray.models.lora import export_network
from rlgaf_ray.objectives.rewards import at_the_end
from rlgaf_ray.types import SequenceBatch


class DiscriminatorNetwork(nn.Module):
    """Maps sequences to logits. ``network``, a ``PreTrainedModel``, has all weights."""

    network: Any  # PreTrainedModel does not declare the heads

    @property
    def added_tokens(self) -> int:
        """Number of tokens that the network adds to prompt and response."""
        return 0

    def forward(self, sequences: SequenceBatch) -> Float[Tensor, " batch"]:
        """Return the logit that the response is a demonstration, float32 [B]."""
        raise NotImplementedError

    def token_logits(self, sequences: SequenceBatch) -> Float[Tensor, "batch time"]:
        """Split the logit over the response tokens, float32 [B, T], zero elsewhere; the sum over time is ``forward``.

        By default the last response token gets all of it.
        """
        return at_the_end(self(sequences), sequences.response_mask)

    def penalty(self) -> float | Float[Tensor, ""]:
        """Return the weight regularisation term of the loss."""
        return 0.0

    def export(self, folder: str | Path, state: dict[str, Tensor] | None = None) -> None:
        """Write a plain Hugging Face folder. ``state``: the full state dict if the weights are sharded."""
        export_network(self.network, folder, state)
