"""Bytes that each actor holds at its peak, from the shape of the model and the sizes of the batch.

Pure arithmetic: neither torch nor Ray is imported. Every formula is derived where it stands;
``benchmarks/plan_check.py`` holds the sums against measured runs (docs/scaling.md).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from rlgaf_ray.plan.shape import FLOAT32, ModelShape

MOMENTS = 2  # AdamW keeps two numbers a parameter


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one actor, by what they hold."""

    weights: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    reference: float = (
        0.0  # further whole networks: the frozen start, moving averages, a critic, a discriminator's copy
    )
    activations: float = 0.0
    kv_cache: float = 0.0
    runtime: float = 0.0  # interpreter, libraries, CUDA's context

    @property
    def total(self) -> float:
        return sum(getattr(self, item.name) for item in fields(self))


def trained(parameters: float, *, shards: int = 1) -> Memory:
    """Weights, gradients and AdamW's moments of a network that is trained in float32, one of ``shards`` equal parts.

    4 P + 4 P + 2 x 4 P = 16 P bytes (Rajbhandari et al. 2020, ZeRO, arXiv 1910.02054, section 3.1, without its 16-bit
    copies: autocast makes those, see ``cast_weights``). FSDP splits all three (ZeRO-3); DDP none, so ``shards`` is 1.
    """
    part = FLOAT32 * parameters / shards
    return Memory(weights=part, gradients=part, optimizer=MOMENTS * part)


def cast_weights(shape: ModelShape, matrix_parameters: float, *, element: int, shards: int = 1) -> float:
    """Copies of the matrices N that a step computes with, beside the float32 ones.

    - whole on every rank: autocast's 16-bit copies, 2 N bytes, which backward keeps until its end; none in float32
    - FSDP: the block that computes and the one that is fetched ahead, 2 e x (parameters of a block) (Zhao et al. 2023,
      arXiv 2304.11277, section 3.3)

    Embeddings that are only looked up, biases and norms are not cast.
    """
    if shards > 1:
        return 2.0 * element * shape.block_parameters
    return 0.0 if element == FLOAT32 else element * matrix_parameters


def block_activations(shape: ModelShape, *, tokens: int, length: int, element: int, fused_attention: bool) -> float:
    """What one block keeps for backward, for ``tokens`` tokens in rows of ``length``.

    Per token, with h = width, q and k the widths of queries and of keys, i = the hidden layer, a = heads, s = length,
    e = bytes of an element under autocast (the residual stream stays float32, as weights are):

    - what the two norms read, 2 x 4 h; RMS norms also keep it normalised, 2 x 4 h more
    - what the matrices read: 2 e h, or, where autocast casts it for each of Llama's q, k, v, gate and up, 5 e h
    - queries, keys, values: e (q + 2 k);  what attention returns, which its output matrix reads: e q
    - plain attention: the weights of all heads, e a s, and 4 a s before their cast; fused attention keeps 4 a
    - MLP: before and after the activation, 2 e i, and three more where it is composed of elementary functions;
      gated: gate, activated gate, up, product, 4 e i

    In float32 with h = q = k and i = 4 h: 64 h + 4 a s. A test holds it to what autograd saves. In 16 bits throughout
    and with dropout's masks it would be the 34 h + 5 a s of Korthikanti et al. 2022 (arXiv 2205.05198, eq. 2).
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
    """What backward needs of all blocks, and the gradients of the block that it passes through: as much again.

    (L + 1) x ``block_activations``; with activation checkpointing of each block's input L x 4 h x tokens + 2 blocks
    (Chen et al. 2016, arXiv 1604.06174).
    """
    tokens = rows * length
    block = block_activations(shape, tokens=tokens, length=length, element=element, fused_attention=fused_attention)
    if not checkpointing:
        return (shape.layers + 1) * block
    return FLOAT32 * shape.width * tokens * shape.layers + 2 * block


def vocabulary_activations(shape: ModelShape, *, tokens: int, element: int, exact_kl: bool) -> float:
    """The tensors of response tokens x vocabulary in the middle of a learner's backward pass.

    From sampled tokens: log-softmax (4), its gradient from the tokens (4) and summed (4), that of the logits (e). With
    the exact KL also the reference's log-softmax, the policy's probabilities, their difference (4 each) and the mask of
    ruled-out tokens (1), and the gradients of probabilities and difference (4 each).
    """
    per_entry = 3 * FLOAT32 + element + (5 * FLOAT32 + 1 if exact_kl else 0)
    return float(tokens * shape.vocabulary * per_entry)


def embedding_gradients(shape: ModelShape, *, output: bool) -> float:
    """Gradients of the embedding on their way into the sum over micro-batches, dense: 4 V h bytes.

    Twice where it is the output layer too: autograd adds the two uses first.
    """
    return FLOAT32 * shape.output_parameters * (2 if output and shape.tied else 1)


def kv_bytes_per_token(shape: ModelShape, *, element: int) -> int:
    """Keys and values of every layer: 2 L k e (Pope et al. 2022, arXiv 2211.05102, section 2)."""
    return 2 * shape.layers * shape.kv_width * element


def rollout_memory(
    shape: ModelShape, *, element: int, kv_cache: float, shards: int, runtime: float, packed: bool
) -> Memory:
    """One shard of a rollout worker: its part of the weights, and the cache.

    ``packed``: vLLM on CPU repacks the matrices. A tied output layer then is there twice more, as it was loaded and
    packed; and a push makes a second set of all before it drops the first (measured, docs/scaling.md).
    """
    copies = 2 * shape.output_parameters if packed and shape.tied else 0
    weights = element * (shape.parameters + copies) / shards
    return Memory(weights=weights, reference=weights if packed else 0.0, kv_cache=kv_cache, runtime=runtime)
