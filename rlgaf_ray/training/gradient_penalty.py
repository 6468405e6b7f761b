"""The discriminator's gradient penalty on a batch: where the gradient is taken, and in what precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from rlgaf_ray.data.collate import collate_sequences, num_tokens
from rlgaf_ray.data.lengths import Response, on_one_prompt
from rlgaf_ray.models.scalar import ScalarModel
from rlgaf_ray.objectives.gradient_penalty import r1_penalty, squared_gradient_norms, unit_norm_penalty
from rlgaf_ray.training.batching import Batching

GradientPenalty = Literal["r1", "interpolated"]


def penalise_gradients(
    model: ScalarModel,
    real: Sequence[Response],
    fake: Sequence[Response],
    *,
    kind: GradientPenalty,
    weight: float,
    batching: Batching,
    pad_token_id: int,
    device: torch.device,
) -> float:
    """Add the gradient of ``weight`` times the batch's penalty; returns the penalty, without its weight."""
    count = len(real) if kind == "r1" else min(len(real), len(fake))
    total = 0.0
    for rows in batching.plan([num_tokens(item) for item in real[:count]]):
        share = len(rows) / count
        penalty = gradient_penalty(
            model,
            [real[row] for row in rows or [0]],
            [fake[row] for row in rows or [0]] if kind == "interpolated" else [],
            kind=kind,
            pad_token_id=pad_token_id,
            device=device,
        )
        (weight * penalty * share).backward()
        total += float(penalty.detach()) * share
    return batching.group.sum_numbers([total])[0]


def gradient_penalty(
    model: ScalarModel,
    real: Sequence[Response],
    fake: Sequence[Response],
    *,
    kind: GradientPenalty,
    pad_token_id: int,
    device: torch.device,
) -> Tensor:
    """``r1`` at the real responses' embeddings, ``interpolated`` between each of them and a fake one's; a scalar.

    A mixture stands after the real response's prompt and is as long as the shorter of the two; its weight is drawn from
    U(0, 1), one for each pair. The embeddings are data here: how the embedding matrix moves them is left out of the
    penalty's gradient. In float32, and with an attention that can be differentiated twice, which fused ones cannot.
    """
    match kind:
        case "r1":
            sequences = collate_sequences(real, pad_token_id).to(device)
            points = model.embed(sequences)
        case "interpolated":
            pairs = [on_one_prompt(first, second) for first, second in zip(real, fake, strict=False)]
            sequences, other = (collate_sequences(side, pad_token_id).to(device) for side in zip(*pairs, strict=True))
            share = torch.rand(len(pairs), 1, 1, device=device)
            points = torch.lerp(model.embed(other), model.embed(sequences), share)
    points = points.detach().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        squared_norms = squared_gradient_norms(model.logits_of(sequences, points), points, sequences.response_mask)
    return r1_penalty(squared_norms) if kind == "r1" else unit_norm_penalty(squared_norms)
