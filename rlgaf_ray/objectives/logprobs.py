"""Log-probabilities of given tokens from a language model's logits, at once or in chunks of positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rlgaf_ray.objectives.kl import exact_kl


def log_probabilities(logits: Float[Tensor, "*shape vocabulary"]) -> Float[Tensor, "*shape vocabulary"]:
    """Apply log-softmax in float32 (float64 for float64 logits)."""
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def token_logprobs(
    logits: Float[Tensor, "*shape vocabulary"], token_ids: Int[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Gather each token's log-probability from the logits, in nats.

    log p(y) = logits[y] - logsumexp(logits)

    The logits may have any float dtype; the sum over the vocabulary and the result are float32 (float64 for float64
    logits). ``log_softmax`` is one fused pass: on CPU about twice as fast as ``logsumexp`` plus ``gather`` for bfloat16
    logits, with no extra memory for the backward pass (one float32 array of the logits' shape), and about four times
    as fast for float32.

    Shapes: logits [..., V], token ids [...] -> float32 [...]. The caller shifts: logits and token of a row must match.
    Raises: an error from ``gather`` if an id is outside the vocabulary.
    Temperature, masked tokens and padding are up to the caller.
    """
    assert logits.shape[:-1] == token_ids.shape, (logits.shape, token_ids.shape)
    return log_probabilities(logits).gather(-1, token_ids[..., None]).squeeze(-1)


Head = Callable[[Tensor], Tensor]
"""Maps hidden states [n, W] to logits [n, V] of the sampling distribution."""


def chunked_logprobs(
    hidden: Float[Tensor, "tokens width"], head: Head, token_ids: Int[Tensor, " tokens"], *, size: int
) -> Float[Tensor, " tokens"]:
    """Compute ``token_logprobs(head(hidden), token_ids)`` with the logits of only ``size`` positions in memory.

    The backward pass recomputes a chunk's logits (Chen et al. 2016, "Training deep nets with sublinear memory cost",
    arXiv 1604.06174): one extra output projection in exchange for never storing [tokens, vocabulary].
    Shapes: [N, W], [N] -> [N].
    """

    def of_chunk(hidden: Tensor, token_ids: Tensor) -> tuple[Tensor]:
        return (token_logprobs(head(hidden), token_ids),)

    (logprobs,) = _in_chunks(of_chunk, (hidden, token_ids), size)
    return logprobs


def chunked_logprobs_and_kl(
    hidden: Float[Tensor, "tokens width"],
    head: Head,
    reference_hidden: Float[Tensor, "tokens reference_width"],
    reference_head: Head,
    token_ids: Int[Tensor, " tokens"],
    *,
    size: int,
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
    """Compute the tokens' log-probs under policy and reference, and ``exact_kl`` at each position, in nats.

    Works on ``size`` positions at a time, like ``chunked_logprobs``; the reference gets no gradient.
    Shapes: [N, W], [N, W'], [N] -> three of [N].
    """

    def of_chunk(hidden: Tensor, reference_hidden: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        policy = log_probabilities(head(hidden))
        with torch.no_grad():
            reference = log_probabilities(reference_head(reference_hidden))
        own, anchor = (each.gather(-1, token_ids[:, None]).squeeze(-1) for each in (policy, reference))
        return own, anchor, exact_kl(policy, reference)

    logprobs, anchors, distance = _in_chunks(of_chunk, (hidden, reference_hidden, token_ids), size)
    return logprobs, anchors, distance


def _in_chunks(
    function: Callable[..., tuple[Tensor, ...]], arguments: Sequence[Tensor], size: int
) -> tuple[Tensor, ...]:
    """Apply ``function`` to ``size`` rows at a time, with activation checkpointing."""
    chunks = zip(*(argument.split(size) for argument in arguments), strict=True)
    results = [checkpoint(function, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    return tuple(torch.cat(parts) for parts in zip(*results, strict=True))
