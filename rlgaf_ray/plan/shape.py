"""Dimensions of a transformer that determine memory, traffic and time. Imports neither torch nor Ray."""

from __future__ import annotations

from dataclasses import dataclass

FLOAT32, BFLOAT16 = 4, 2  # bytes per element
GIB, MIB = 2**30, 2**20


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder. GPT-2: ``ModelShape(124_439_808, 12, 768, 12, 12, 64, 3072, False, 50257, True, composed=True)``.

    Gated models are assumed to be Llama-like: RMS norms, and separate matrices for queries, keys and values.
    """

    parameters: int  # tied weights counted once
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_size: int
    feed_forward: int  # width of the hidden layer of a block's MLP
    gated: bool  # two matrices into the hidden layer (SwiGLU) instead of one
    vocabulary: int
    tied: bool  # the output layer is the embedding
    composed: bool = False  # the activation consists of elementary functions (GPT-2's gelu_new), not one kernel

    @property
    def query_width(self) -> int:
        return self.heads * self.head_size

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_size

    @property
    def block_parameters(self) -> int:
        """Parameters of one block's matrices: attention (q, k, v, output) and two or three of the MLP."""
        attention = 2 * self.width * self.query_width + 2 * self.width * self.kv_width
        return attention + (3 if self.gated else 2) * self.width * self.feed_forward

    @property
    def adapter_parameters(self) -> int:
        """Parameters per unit of rank of the adapters of one block: inputs plus outputs of each of its matrices."""
        attention = 2 * (self.width + self.query_width) + 2 * (self.width + self.kv_width)
        return attention + (3 if self.gated else 2) * (self.width + self.feed_forward)

    @property
    def matrix_parameters(self) -> int:
        """Parameters of all matrix products: blocks and output layer, without input embeddings, biases and norms."""
        return self.layers * self.block_parameters + self.output_parameters

    @property
    def output_parameters(self) -> int:
        return self.vocabulary * self.width

    @property
    def scalar_parameters(self) -> int:
        """Parameters with a scalar head instead of the output layer: the discriminator, PPO's critic."""
        return self.parameters - (0 if self.tied else self.output_parameters) + self.width
