"""Sample tokens from logits, each row independently of the rest of the batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import TopKLogitsWarper, TopPLogitsWarper

from rlgaf_ray.types import SamplingSettings


def sampling_logprobs(logits: Tensor, sampling: SamplingSettings, *, masked_ids: Sequence[int]) -> Tensor:
    """Return log-probs of the sampling distribution: mask, temperature, min-p, top-k, then top-p.

    Args:
        logits: [B, V], any float dtype.
        masked_ids: tokens that cannot be sampled.

    Returns:
        float32 [B, V]; minus infinity where a token cannot be sampled.
    """
    logits = logits.float()
    if masked_ids:
        logits = logits.index_fill(-1, torch.tensor(masked_ids, device=logits.device), float("-inf"))
    logits = logits / sampling.temperature
    if sampling.min_p:
        least = logits.amax(-1, keepdim=True) + math.log(sampling.min_p)
        logits = logits.masked_fill(logits < least, float("-inf"))
    # These two warpers ignore their input_ids argument.
    if sampling.top_k:
        logits = TopKLogitsWarper(sampling.top_k)(None, logits)
    if sampling.top_p < 1.0:
        logits = TopPLogitsWarper(sampling.top_p)(None, logits)
    return logits.log_softmax(-1)


def row_uniforms(seeds: Sequence[int], num_tokens: int) -> Tensor:
    """Sample uniforms in [0, 1), float64 [B, T]; row i depends on seed i only."""
    return torch.from_numpy(np.stack([np.random.default_rng(seed).random(num_tokens) for seed in seeds]))


def draw(logprobs: Tensor, uniforms: Tensor) -> Tensor:
    """Sample a token per row by inverse CDF: the first token whose cumulative probability exceeds the uniform.

    Tokens of probability 0 do not increase the CDF, so they are never sampled.

    Shapes: logprobs [B, V], uniforms float64 [B] -> int64 [B].
    """
    cumulative = logprobs.double().exp().cumsum(-1)
    total = cumulative[:, -1]
    # The total is 1 up to rounding; a target that rounds up to it would index past the last token.
    targets = torch.minimum(uniforms * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, targets[:, None], right=True)[:, 0]
