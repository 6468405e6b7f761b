"""Peak memory of each actor in bytes, from model shape and batch size.

Pure arithmetic: neither torch nor Ray is imported. The docstrings derive the formulas;
``benchmarks/plan_check.py`` compares the totals with measured runs (docs/scaling.md).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from rlgaf_ray.plan.shape import FLOAT32, ModelShape

MOMENTS = 2  # AdamW keeps two numbers per parameter


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one actor by purpose."""

    weights: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    reference: float = 0.0  # other networks: reference, base model, averages, discriminator's copy, a push's second set
    activations: float = 0.0
    kv_cache: float = 0.0
    runtime: float = 0.0  # interpreter, libraries, CUDA's context

    @property
    def total(self) -> float:
        return sum(getattr(self, item.name) for item in fields(self))

    @property
    def idle(self) -> float:
        """Bytes between two steps of a rank, which free the gradients and the activations."""
        return self.total - self.gradients - self.activations


def trained(parameters: float, *, frozen: float = 0.0, shards: int = 1) -> Memory:
    """Return the bytes of one shard of a network trained in float32: weights, gradients and AdamW's moments.

    ``frozen``: further parameters, with weights only (below adapters, or lower blocks).

    4 P + 4 P + 2 x 4 P = 16 P bytes (Rajbhandari et al. 2020, ZeRO, arXiv 1910.02054, section 3.1, without its 16-bit
    copies: autocast makes those, see ``cast_weights``). FSDP shards all three (ZeRO-3); with DDP ``shards`` is 1.
    """
    part = FLOAT32 * parameters / shards
    return Memory(weights=part + FLOAT32 * frozen / shards, gradients=part, optimizer=MOMENTS * part)


def cast_weights(shape: ModelShape, matrix_parameters: float, *, element: int, shards: int = 1) -> float:
    """Return the bytes of the copies of the matrices N that a step computes with, in addition to the float32 weights.

    - unsharded: autocast's 16-bit copies, 2 N bytes, kept until the end of backward; none in float32
    - FSDP: the gathered current and prefetched blocks, 2 e x (parameters of a block) (Zhao et al. 2023, arXiv
      2304.11277, section 3.3)

    Input embeddings, biases and norms are not cast.
    """
    if shards > 1:
        return 2.0 * element * shape.block_parameters
    return 0.0 if element == FLOAT32 else element * matrix_parameters


def block_activations(shape: ModelShape, *, tokens: int, length: int, element: int, fused_attention: bool) -> float:
    """Return the bytes that one block saves for backward, for ``tokens`` tokens in rows of ``length``.

    Per token, with h = width, q and k the widths of queries and of keys, i = the hidden layer, a = heads, s = length,
    e = bytes of an element under autocast (the residual stream stays float32, as weights are):

    - inputs of the two norms, 2 x 4 h; RMS norms also save their normalised output, 2 x 4 h more
    - inputs of the matrices: 2 e h; with autocast one cast each for Llama's q, k, v, gate and up, 5 e h
    - queries, keys, values: e (q + 2 k);  output of attention, the input of its output matrix: e q
    - eager attention: the weights of all heads, e a s, and 4 a s before their cast; fused attention saves 4 a
    - MLP: before and after the activation, 2 e i, and three more if it is composed of elementary functions;
      gated: gate, activated gate, up, product, 4 e i

    In float32 with h = q = k and i = 4 h: 64 h + 4 a s. A test compares it with the tensors that autograd saves. Fully
    in 16 bits and with dropout masks it would be the 34 h + 5 a s of Korthikanti et al. 2022 (arXiv 2205.05198, eq. 2).
    """
    h, q, k, i = shape.width, shape.query_width, shape.kv_width, shape.feed_forward
    cast = element != FLOAT32
    norms = (4 if shape.gated else 2) * FLOAT32 * h
    inputs = (5 if shape.gated and cast else 2) * element * h
    attention = element * (q + 2 * k) + element * q
    weights = FLOAT32 * shape.heads if fused_attention else (element + FLOAT32 * cast) * shape.heads * length
    mlp = (4 if shape.gated else 5 if shape.composed else 2) * element * i
    return float(tokens * (norms + inputs + attention + weights + mlp))


def activations(
    shape: ModelShape, *, rows: int, length: int, element: int, fused_attention: bool, checkpointing: bool = False
) -> float:
    """Return the bytes for backward: activations of all blocks, and the gradients of one block, of equal size.

    (L + 1) x ``block_activations``. With activation checkpointing the input of each block, L x 4 h x tokens, and two
    blocks (Chen et al. 2016, arXiv 1604.06174).
    """
    tokens = rows * length
    block = block_activations(shape, tokens=tokens, length=length, element=element, fused_attention=fused_attention)
    if not checkpointing:
        return (shape.layers + 1) * block
    return FLOAT32 * shape.width * tokens * shape.layers + 2 * block


def vocabulary_activations(shape: ModelShape, *, tokens: int, element: int, exact_kl: bool) -> float:
    """Return the bytes of the [response tokens, vocabulary] tensors at the peak of a learner's backward pass.

    Bytes per entry: log-softmax (4), its gradient from the sampled tokens (4) and in total (4), gradient of the logits
    (e). The exact KL adds the reference's log-softmax, the policy's probabilities and their difference (4 each), the
    mask of excluded tokens (1), and the gradients of probabilities and difference (4 each).
    """
    per_entry = 3 * FLOAT32 + element + (5 * FLOAT32 + 1 if exact_kl else 0)
    return float(tokens * shape.vocabulary * per_entry)


def embedding_gradients(shape: ModelShape, *, output: bool) -> float:
    """Return the bytes of a micro-batch's dense embedding gradient before it is accumulated: 4 V h.

    Twice that if the embedding is also the output layer, since autograd adds the gradients of the two uses first.
    """
    return FLOAT32 * shape.output_parameters * (2 if output and shape.tied else 1)


def kv_bytes_per_token(shape: ModelShape, *, element: int) -> int:
    """Return the KV cache bytes per token: 2 L k e (Pope et al. 2022, arXiv 2211.05102, section 2)."""
    return 2 * shape.layers * shape.kv_width * element


def rollout_memory(
    shape: ModelShape, *, element: int, kv_cache: float, shards: int, runtime: float, packed: bool
) -> Memory:
    """Return the memory of one shard of a rollout worker: its weights and KV cache.

    ``packed``: vLLM on CPU repacks the matrices. A tied output layer then has two more copies, loaded and packed, and a
    push allocates a second set of weights before it frees the first (measured, docs/scaling.md).
    """
    copies = 2 * shape.output_parameters if packed and shape.tied else 0
    weights = element * (shape.parameters + copies) / shards
    return Memory(weights=weights, reference=weights if packed else 0.0, kv_cache=kv_cache, runtime=runtime)
