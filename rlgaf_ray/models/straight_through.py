"""Sample responses with straight-through gradients: each soft token is the input of the next step.

Prompts are padded on the left and responses on the right, so that a step is the same column in all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from rlgaf_ray.models.generator import embedding_matrix, sampling_logits
from rlgaf_ray.models.scalar import ScalarModel
from rlgaf_ray.objectives.gumbel import Generators, gumbel_perturbed, straight_through_embeddings
from rlgaf_ray.types import SequenceBatch


@dataclass(frozen=True, slots=True, eq=False)
class AlignedBatch:
    """Prompts padded on the left, responses on the right."""

    prompt_ids: Tensor  # int64 [B, P]
    prompt_mask: Tensor  # int64 [B, P], 1 on tokens
    response_ids: Tensor  # int64 [B, R]
    response_mask: Tensor  # bool [B, R], true on tokens

    @property
    def attention_mask(self) -> Tensor:
        """int64 [B, P + R]"""
        return torch.cat([self.prompt_mask, self.response_mask.long()], 1)

    def rows(self, index: Tensor) -> AlignedBatch:
        return AlignedBatch(
            self.prompt_ids[index], self.prompt_mask[index], self.response_ids[index], self.response_mask[index]
        )

    def answered(self, response_ids: Tensor, response_mask: Tensor) -> AlignedBatch:
        """Return the same prompts with other responses."""
        return AlignedBatch(self.prompt_ids, self.prompt_mask, response_ids, response_mask)


def align(sequences: SequenceBatch) -> AlignedBatch:
    """Shift rows so that all responses start in the same column. Raises ``ValueError`` for an empty prompt."""
    is_prompt = sequences.attention_mask.bool() & ~sequences.response_mask
    num_prompt = is_prompt.sum(1, keepdim=True)
    num_response = sequences.response_mask.sum(1, keepdim=True)
    if int(num_prompt.min()) == 0:
        raise ValueError("a response needs a prompt that its first token is predicted from")
    columns = torch.arange(sequences.token_ids.shape[1], device=sequences.token_ids.device)
    from_prompt = columns[: int(num_prompt.max())] - (num_prompt.max() - num_prompt)
    offsets = columns[: int(num_response.max())]
    last = sequences.token_ids.shape[1] - 1
    return AlignedBatch(
        prompt_ids=sequences.token_ids.gather(1, from_prompt.clamp(min=0)),
        prompt_mask=(from_prompt >= 0).long(),
        response_ids=sequences.token_ids.gather(1, (num_prompt + offsets).clamp(max=last)),
        response_mask=offsets < num_response,
    )


def positions_of(attention_mask: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
    """Return position ids that start at 0 at each row's first token: int64 [B, T]."""
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)


def response_logits(
    model: PreTrainedModel, batch: AlignedBatch, *, temperature: float, masked_token_ids: Sequence[int]
) -> Float[Tensor, "batch response vocabulary"]:
    """Return the logits at every response position given the tokens before it, in one pass: [B, R, V]."""
    num_prompt, num_tokens = batch.prompt_ids.shape[1], batch.attention_mask.shape[1]
    logits = model(
        input_ids=torch.cat([batch.prompt_ids, batch.response_ids], 1),
        attention_mask=batch.attention_mask,
        position_ids=positions_of(batch.attention_mask),
        logits_to_keep=torch.arange(num_prompt - 1, num_tokens - 1, device=batch.prompt_ids.device),
        use_cache=False,
    ).logits
    return sampling_logits(logits, temperature=temperature, masked_token_ids=masked_token_ids)


def sample_straight_through(
    model: PreTrainedModel,
    batch: AlignedBatch,
    embedding: Float[Tensor, "vocabulary width"],
    *,
    num_tokens: int,
    relaxation_temperature: float,
    temperature: float = 1.0,
    masked_token_ids: Sequence[int] = (),
    end_of_text_ids: Sequence[int] = (),
    generator: Generators = None,
    feed_gradient: bool = True,
) -> tuple[AlignedBatch, Float[Tensor, "batch response width"]]:
    """Sample responses to the prompts of ``batch`` as straight-through one-hot tokens.

    y_t is the straight-through Gumbel-softmax of the logits given (x, y_<t). The next input is y_t E, whose keys and
    values stay in the graph. RLGAF (arXiv 2305.06176), section 2.2.

    Args:
        embedding: the discriminator's; the second result is y_t times it, float32 [B, R, W].
        temperature: of the sampling distribution, like ``masked_token_ids``; both as for an engine.
        end_of_text_ids: ids that end a response; it is masked after the first of them.
        feed_gradient: False feeds detached tokens, which gives the gradient of ``conditional`` mode for the same noise.

    Memory: float32 [B, R, V] for the perturbed logits, and keys and values once for every step that reads them.
    """
    own = embedding_matrix(model)
    cache = DynamicCache(config=model.config)
    attention_mask = batch.prompt_mask
    inputs = own[batch.prompt_ids]
    ends = torch.tensor(list(end_of_text_ids), device=inputs.device, dtype=torch.long)
    running = torch.ones(len(inputs), dtype=torch.bool, device=inputs.device)
    sampled, masks, read = [], [], []
    for step in range(num_tokens):
        logits = model(
            inputs_embeds=inputs,
            attention_mask=attention_mask,
            position_ids=positions_of(attention_mask)[:, -inputs.shape[1] :],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        logits = sampling_logits(logits, temperature=temperature, masked_token_ids=masked_token_ids)
        token_ids, (fed, seen) = straight_through_embeddings(
            gumbel_perturbed(logits, generator=generator), (own, embedding), temperature=relaxation_temperature
        )
        sampled.append(token_ids)
        masks.append(running)
        read.append(seen)
        running = running & ~torch.isin(token_ids, ends)
        if step + 1 == num_tokens or not running.any():
            break
        # Ended rows stay in the batch; their further samples are masked.
        inputs = (fed if feed_gradient else fed.detach())[:, None]
        attention_mask = torch.nn.functional.pad(attention_mask, (0, 1), value=1)
    return batch.answered(torch.stack(sampled, 1), torch.stack(masks, 1)), torch.stack(read, 1)


def soft_logits(
    discriminator: ScalarModel, batch: AlignedBatch, read: Float[Tensor, "batch response width"]
) -> Float[Tensor, " batch"]:
    """Return the discriminator's logits of soft responses, [B]; ``read``: soft tokens times its embedding."""
    prompt_mask = torch.zeros_like(batch.prompt_mask, dtype=torch.bool)
    return discriminator.embedded_logits(
        torch.cat([discriminator.embedding[batch.prompt_ids], read], 1),
        attention_mask=batch.attention_mask,
        position_ids=positions_of(batch.attention_mask),
        response_mask=torch.cat([prompt_mask, batch.response_mask], 1),
    )
