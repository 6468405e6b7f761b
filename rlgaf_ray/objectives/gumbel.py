"""Gumbel-softmax: tokens as straight-through one-hots, so that a discriminator's gradient reaches the generator.

RLGAF (arXiv 2305.06176), section 2.2; Jang et al. 2017 (arXiv 1611.01144); Maddison et al. 2017 (arXiv 1611.00712).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def gumbel_perturbed(
    logits: Float[Tensor, "*shape vocabulary"], *, generator: torch.Generator | None = None
) -> Float[Tensor, "*shape vocabulary"]:
    """Logits plus standard Gumbel noise: the argmax of a row is a draw from softmax(logits).

    phi + g,  g = -log E,  E ~ Exponential(1)

    Shapes: [..., V] -> [..., V], float32. The noise carries no gradient.
    """
    return logits.float() - _exponential(logits, generator).log()


def conditional_gumbel_perturbed(
    logits: Float[Tensor, "*shape vocabulary"],
    token_ids: Int[Tensor, "*shape"],
    *,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*shape vocabulary"]:
    """Perturbed logits as they are distributed when the argmax of each row is known to be the given token.

    With log-probabilities phi (which sum to one) the largest value is a standard Gumbel, whatever the token is, and the
    others are Gumbels truncated there::

        T = -log E_y;   z_y = T;   z_i = -log(exp(-T) + E_i / exp(phi_i))   for i != y,   E ~ Exponential(1)

    Maddison, Tarlow and Minka 2014 (arXiv 1411.0030, truncated Gumbels); Paulus et al. 2021 (arXiv 2010.04838, eq. 8).
    So tokens drawn elsewhere (by vLLM) can be given the noise that would have drawn them.

    The noise g = z - phi is what is drawn, and it is held fixed: the gradient of the result with respect to the logits
    is that of phi + g. Shapes: logits [..., V], token ids [...] -> [..., V], float32. The argmax of a row is its token,
    where rounding would make a tie the others are moved below it.
    Raises: an error from ``gather`` when an id lies outside the vocabulary.
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
    # Adds an exact zero: the value stays as drawn, the gradient is that of the log-probabilities.
    possible = ~logprobs.isneginf()
    return perturbed + torch.where(possible, logprobs - logprobs.detach(), 0.0)


def straight_through_one_hot(
    perturbed: Float[Tensor, "*shape vocabulary"], *, temperature: float
) -> Float[Tensor, "*shape vocabulary"]:
    """The argmax as a one-hot on the way forward, softmax(perturbed / temperature) on the way back.

    Jang et al. 2017, section 2.2 (straight-through Gumbel-softmax). A low temperature makes the gradient nearly that of
    the one-hot, and its variance large; a high one makes it smooth and biased.

    Shapes: [..., V] -> [..., V]. The forward value is exactly 0 and 1.
    Raises ValueError for a temperature that is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"a Gumbel-softmax temperature of {temperature} must be positive")
    soft = (perturbed / temperature).softmax(-1)
    hard = torch.zeros_like(soft).scatter(-1, perturbed.argmax(-1, keepdim=True), 1.0)
    return _StraightThrough.apply(soft, hard)


def soft_embedding(
    one_hots: Float[Tensor, "*shape vocabulary"], embedding: Float[Tensor, "vocabulary width"]
) -> Float[Tensor, "*shape width"]:
    """The embedding of (soft) tokens as a product with the embedding matrix: of an exact one-hot, the lookup itself."""
    return one_hots.to(embedding.dtype) @ embedding


def annealed_temperature(step: int, *, num_steps: int, start: float, end: float) -> float:
    """Geometric from ``start`` at step 0 to ``end`` at the last step (Jang et al. 2017 anneal exponentially)."""
    if start <= 0 or end <= 0:
        raise ValueError(f"Gumbel-softmax temperatures must be positive, got start={start} and end={end}")
    progress = min(1.0, step / max(1, num_steps - 1))
    return start * (end / start) ** progress


def _exponential(like: Tensor, generator: torch.Generator | None) -> Tensor:
    drawn = torch.empty(like.shape, dtype=torch.float32, device=like.device).exponential_(generator=generator)
    return drawn.clamp_(min=torch.finfo(torch.float32).tiny)  # of a zero the logarithm would be infinite


class _StraightThrough(torch.autograd.Function):
    """Forward the hard value, backward the soft one: without ``hard + soft - soft``, whose rounding is not exact."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, soft: Tensor, hard: Tensor) -> Tensor:
        return hard

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
