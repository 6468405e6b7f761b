"""Gumbel-softmax: straight-through one-hot tokens that pass the discriminator's gradient to the generator.

RLGAF (arXiv 2305.06176), section 2.2; Jang et al. 2017 (arXiv 1611.01144); Maddison et al. 2017 (arXiv 1611.00712).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None
"""Random generator of the noise. With a sequence of them, one per entry of the first dimension, the noise of an entry
does not depend on the rest of the batch."""


def gumbel_perturbed(
    logits: Float[Tensor, "*shape vocabulary"], *, generator: Generators = None
) -> Float[Tensor, "*shape vocabulary"]:
    """Add standard Gumbel noise to logits: the argmax of a row is a sample from softmax(logits).

    phi + g,  g = -log E,  E ~ Exponential(1)

    Shapes: [..., V] -> [..., V], float32. The noise carries no gradient.
    """
    return logits.float() - _exponential(logits, generator).log()


def conditional_gumbel_perturbed(
    logits: Float[Tensor, "*shape vocabulary"],
    token_ids: Int[Tensor, "*shape"],
    *,
    generator: Generators = None,
) -> Float[Tensor, "*shape vocabulary"]:
    """Sample perturbed logits conditioned on the argmax of each row being the given token.

    For normalised log-probabilities phi the maximum is a standard Gumbel whichever token attains it, and the other
    values are Gumbels truncated at that maximum::

        T = -log E_y;   z_y = T;   z_i = -log(exp(-T) + E_i / exp(phi_i))   for i != y,   E ~ Exponential(1)

    Maddison, Tarlow and Minka 2014 (arXiv 1411.0030, truncated Gumbels); Paulus et al. 2021 (arXiv 2010.04838, eq. 8).
    This recovers noise that would have produced tokens sampled elsewhere (by vLLM).

    The noise g = z - phi is held fixed: the gradient of the result with respect to the logits is that of phi + g.
    Shapes: logits [..., V], token ids [...] -> [..., V], float32. The argmax of a row is its token; where rounding
    would cause a tie, the other values are moved just below it.
    Raises: an error from ``gather`` if an id is outside the vocabulary.
    """
    assert logits.shape[:-1] == token_ids.shape, (logits.shape, token_ids.shape)
    logprobs = logits.float().log_softmax(-1)
    with torch.no_grad():
        log_exponential = _exponential(logits, generator).log()
        index = token_ids[..., None]
        top = -log_exponential.gather(-1, index)  # T
        others = -torch.logaddexp(-top, log_exponential - logprobs)
        below = torch.nextafter(top, torch.full_like(top, -torch.inf))
        perturbed = torch.minimum(others, below).scatter(-1, index, top)
    # Adds an exact zero: keeps the sampled value and gives it the gradient of the log-probabilities.
    possible = ~logprobs.isneginf()
    return perturbed + torch.where(possible, logprobs - logprobs.detach(), 0.0)


def straight_through_one_hot(
    perturbed: Float[Tensor, "*shape vocabulary"], *, temperature: float
) -> Float[Tensor, "*shape vocabulary"]:
    """Return the argmax as a one-hot in the forward pass, with the gradient of softmax(perturbed / temperature).

    Jang et al. 2017, section 2.2 (straight-through Gumbel-softmax). A low temperature gives a nearly unbiased gradient
    of high variance; a high one gives a smooth, biased gradient.

    Shapes: [..., V] -> [..., V]. Forward values are exactly 0 or 1.
    Raises ValueError for a temperature that is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"the Gumbel-softmax temperature {temperature} must be positive")
    soft = (perturbed / temperature).softmax(-1)
    hard = torch.zeros_like(soft).scatter(-1, perturbed.argmax(-1, keepdim=True), 1.0)
    return _StraightThrough.apply(soft, hard)


def soft_embedding(
    one_hots: Float[Tensor, "*shape vocabulary"], embedding: Float[Tensor, "vocabulary width"]
) -> Float[Tensor, "*shape width"]:
    """Embed (soft) one-hot tokens by multiplying with the embedding matrix; an exact one-hot gives the lookup."""
    return one_hots.to(embedding.dtype) @ embedding


def straight_through_embeddings(
    perturbed: Float[Tensor, "*shape vocabulary"],
    embeddings: Sequence[Float[Tensor, "vocabulary width"]],
    *,
    temperature: float,
) -> tuple[Int[Tensor, "*shape"], list[Float[Tensor, "*shape width"]]]:
    """Return the argmax tokens and their straight-through embeddings, without materialising one-hots.

    Same value and gradient as ``soft_embedding(straight_through_one_hot(perturbed), E)`` for each E. The forward pass
    is a lookup, exact in any precision; the matrices may differ in width. The backward pass, with the gradients g_k of
    the looked-up rows and s = softmax(perturbed / temperature), is::

        u = sum_k g_k E_k^T;   d perturbed = s (u - sum_i s_i u_i) / temperature;   d E_k[token] += g_k

    Memory: ``perturbed`` is the only vocabulary-sized tensor kept for the backward pass.
    Shapes: [..., V], K matrices [V, W_k] -> (int64 [...], K tensors [..., W_k]). The tokens carry no gradient.
    Raises ValueError for a temperature that is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"the Gumbel-softmax temperature {temperature} must be positive")
    token_ids, *rows = _StraightThroughLookup.apply(perturbed, temperature, *embeddings)
    return token_ids, rows


def annealed_temperature(step: int, *, num_steps: int, start: float, end: float) -> float:
    """Decay geometrically from ``start`` at step 0 to ``end`` at the last step (Jang et al. 2017)."""
    if start <= 0 or end <= 0:
        raise ValueError(f"Gumbel-softmax temperatures must be positive, got start={start} and end={end}")
    progress = min(1.0, step / max(1, num_steps - 1))
    return start * (end / start) ** progress


def _exponential(like: Tensor, generator: Generators) -> Tensor:
    drawn = torch.empty(like.shape, dtype=torch.float32, device=like.device)
    if isinstance(generator, Sequence):
        for row, source in zip(drawn, generator, strict=True):
            row.exponential_(generator=source)
    else:
        drawn.exponential_(generator=generator)
    return drawn.clamp_(min=torch.finfo(torch.float32).tiny)  # log(0) would be infinite


class _StraightThrough(torch.autograd.Function):
    """Hard value forward, soft gradient backward; ``hard + soft - soft.detach()`` would not be exactly 0 and 1."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, soft: Tensor, hard: Tensor) -> Tensor:
        return hard

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _StraightThroughLookup(torch.autograd.Function):
    """See ``straight_through_embeddings``."""

    @staticmethod
    def forward(ctx: Any, perturbed: Tensor, temperature: float, *embeddings: Tensor) -> tuple[Tensor, ...]:
        token_ids = perturbed.argmax(-1)
        ctx.mark_non_differentiable(token_ids)
        ctx.set_materialize_grads(False)  # no work for unused outputs, such as the embedding of the last token
        ctx.save_for_backward(perturbed, token_ids, *embeddings)
        ctx.temperature = temperature
        return token_ids, *(embedding[token_ids] for embedding in embeddings)

    @staticmethod
    def backward(ctx: Any, _: None, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        perturbed, token_ids, *embeddings = ctx.saved_tensors
        used = [(g, embedding) for g, embedding in zip(gradients, embeddings, strict=True) if g is not None]
        grad_perturbed = None
        if ctx.needs_input_grad[0] and used:
            grad_one_hot = torch.stack([g.float() @ embedding.float().T for g, embedding in used]).sum(0)
            soft = (perturbed / ctx.temperature).softmax(-1)
            inner = (soft * grad_one_hot).sum(-1, keepdim=True)
            grad_perturbed = soft * (grad_one_hot - inner) / ctx.temperature
        grad_embeddings = [
            torch.zeros_like(embedding).index_add_(0, token_ids.flatten(), g.flatten(0, -2).to(embedding.dtype))
            if g is not None and needed
            else None
            for g, embedding, needed in zip(gradients, embeddings, ctx.needs_input_grad[2:], strict=True)
        ]
        return grad_perturbed, None, *grad_embeddings
