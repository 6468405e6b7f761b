"""Rollout engine on Hugging Face transformers, for tests, debugging and machines without vLLM."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from rlgaf_ray.config.schema import Config
from rlgaf_ray.engines.base import RolloutEngine
from rlgaf_ray.engines.checks import check_request, max_response_tokens
from rlgaf_ray.engines.sampling import draw, row_uniforms, sampling_logprobs
from rlgaf_ray.errors import UserError
from rlgaf_ray.models.folder import longest_sequence
from rlgaf_ray.models.generator import end_of_text_ids, load_generator
from rlgaf_ray.models.vocabulary import masked_token_ids
from rlgaf_ray.types import Metrics, Prompt, Rollout, SamplingSettings, WeightUpdate
from rlgaf_ray.weights.choice import Backend
from rlgaf_ray.weights.manifest import DeviceUpdate
from rlgaf_ray.weights.state import Receipt, num_bytes, to_tensors


class TransformersEngine(RolloutEngine):
    """Batched sampling from a Hugging Face model with a KV cache. Samples of a prompt share forward passes until they
    differ.

    A rollout depends on its prompt, its seed and the weights, but not on the rest of the batch, except for rounding:
    the batch shape changes logits by about 1e-6, which can flip a sample that is as close to a token boundary.

    Args:
        model_folder: a Hugging Face folder or hub id.
        device: a torch device, such as ``cpu`` or ``cuda``.
    """

    def __init__(
        self,
        model_folder: str | Path,
        *,
        dtype: Literal["float32", "bfloat16"] = "float32",
        device: str = "cpu",
        trust_remote_code: bool = False,
    ) -> None:
        self._name = f"the model {model_folder}"
        self._model = load_generator(
            model_folder, dtype=dtype, trust_remote_code=trust_remote_code, device=torch.device(device)
        )
        check_cached_steps(self._model, self._name)
        self._end_of_text_ids = end_of_text_ids(self._model.config)
        self._receipt = Receipt({name: tuple(tensor.shape) for name, tensor in self._model.state_dict().items()})
        self.policy_version = 0

    @classmethod
    def from_config(
        cls,
        model_folder: str | Path,
        config: Config,
        *,
        max_tokens: int,
        device: str,
        threads: int | None,
        transfer: Backend,
    ) -> Self:
        """Start an engine; the model's positions limit the tokens, and the thread count is torch's setting."""
        return cls(
            model_folder, dtype=config.model.dtype, device=device, trust_remote_code=config.model.trust_remote_code
        )

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Prompt], sampling: SamplingSettings, *, seeds: Sequence[int]) -> list[Rollout]:
        """Sample ``sampling.samples_per_prompt`` responses to each prompt; one seed per rollout, in output order.

        Raises:
            UserError: a prompt plus its response exceeds the model's positions.
        """
        check_request(prompts, sampling, seeds, limit=longest_sequence(self._model.config), what=self._name)
        if not prompts:
            return []
        repeated = [prompt for prompt in prompts for _ in range(sampling.samples_per_prompt)]
        token_ids, logprobs, lengths = self._sample(prompts, sampling, seeds)
        rollouts = []
        for row, (prompt, length) in enumerate(zip(repeated, lengths, strict=True)):
            stopped = sampling.stop_at_end_of_text and int(token_ids[row, length - 1]) in self._end_of_text_ids
            rollouts.append(
                Rollout(
                    prompt_id=prompt.prompt_id,
                    prompt_ids=prompt.token_ids,
                    response_ids=token_ids[row, :length].copy(),
                    behaviour_logprobs=logprobs[row, :length].copy(),
                    finish_reason="stop" if stopped else "length",
                    policy_version=self.policy_version,
                )
            )
        return rollouts

    def update_weights(self, update: WeightUpdate | DeviceUpdate) -> Metrics:
        """Load new weights; the last chunk sets the new version. There is no cache to clear between calls.

        Raises:
            ValueError: the update does not match this engine's model. A single-chunk update leaves it unchanged.
        """
        assert isinstance(update, WeightUpdate), "this engine needs weights.transfer=object_store"
        start = time.perf_counter()
        self._receipt.take(update)
        checked = time.perf_counter()
        self._model.load_state_dict(to_tensors(update), strict=update.num_parts == 1)
        if update.is_last:
            self.policy_version = update.policy_version
        return {
            "check_seconds": checked - start,
            "load_seconds": time.perf_counter() - start,
            "megabytes": num_bytes(update) / 1e6,
        }

    def close(self) -> None:
        """Free the model's memory."""
        del self._model

    def _sample(
        self, prompts: Sequence[Prompt], sampling: SamplingSettings, seeds: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Return token ids int32 [B, T], their log-probs float32 [B, T] and the response length of each row.

        Responses with the same prompt share a forward pass until they differ.
        """
        count = sampling.samples_per_prompt
        step_ids, attention_mask = pad_left([prompt.token_ids for prompt in prompts], self._model.device)
        sampled = self._responses([prompt for prompt in prompts for _ in range(count)], sampling, seeds)
        cache = DynamicCache(config=self._model.config)
        prefix = torch.arange(len(prompts), device=self._model.device).repeat_interleave(count)  # row of the pass
        while True:
            position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -step_ids.shape[1] :]
            output = self._model(
                input_ids=step_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            token = sampled.draw(output.logits[:, -1], prefix)
            if not sampled.running.any():
                return sampled.arrays()
            # Finished responses keep sampling from the first row; their extra tokens are dropped by length.
            size = output.logits.shape[-1]
            extended, rows = (prefix * size + token)[sampled.running].unique(return_inverse=True)
            prefix = torch.zeros_like(prefix).masked_scatter(sampled.running, rows)
            parents, step_ids = extended // size, (extended % size)[:, None]
            attention_mask = torch.nn.functional.pad(attention_mask[parents], (0, 1), value=1)
            if len(parents) != len(output.logits) or (parents.diff() != 1).any():
                cache.reorder_cache(parents)

    def _responses(self, prompts: Sequence[Prompt], sampling: SamplingSettings, seeds: Sequence[int]) -> Responses:
        """Start the responses to ``prompts``, one per row and seed."""
        masked_ids = masked_token_ids(self._model.config, stop_at_end_of_text=sampling.stop_at_end_of_text)
        return Responses(prompts, sampling, seeds, self._end_of_text_ids, masked_ids, self._model.device)


class Responses:
    """A batch of B responses that grow by a token per step until each has ended."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingSettings,
        seeds: Sequence[int],
        end_of_text_ids: Sequence[int],
        masked_ids: Sequence[int],
        device: torch.device,
    ) -> None:
        self.sampling = sampling
        self.masked_ids = masked_ids
        self.limits = torch.tensor([max_response_tokens(prompt, sampling) for prompt in prompts], device=device)
        self.uniforms = row_uniforms(seeds, sampling.max_new_tokens).to(device)
        self.ends = torch.tensor(end_of_text_ids, device=device)
        self.running = torch.ones(len(seeds), dtype=torch.bool, device=device)
        self.lengths = torch.zeros(len(seeds), dtype=torch.long, device=device)
        self.token_ids: list[Tensor] = []
        self.logprobs: list[Tensor] = []

    def draw(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Sample the next token of each response from ``logits`` [N, V] at its row, ``rows`` [B], and append it: [B].

        Responses that have ended get tokens too, which ``lengths`` does not count.
        """
        distribution = sampling_logprobs(logits, self.sampling, masked_ids=self.masked_ids)[rows]
        token = draw(distribution, self.uniforms[:, len(self.token_ids)])
        self.token_ids.append(token)
        self.logprobs.append(distribution.gather(-1, token[:, None])[:, 0])
        self.lengths += self.running
        self.running = self.running & ~torch.isin(token, self.ends) & (self.lengths < self.limits)
        return token

    def arrays(self) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Return token ids int32 [B, T], their log-probs float32 [B, T] and the response length of each row."""
        return (
            torch.stack(self.token_ids, 1).to("cpu", torch.int32).numpy(),
            torch.stack(self.logprobs, 1).cpu().numpy(),
            self.lengths.tolist(),
        )


@torch.inference_mode()
def check_cached_steps(model: PreTrainedModel, name: str) -> None:
    """Reject a model whose logits change with a KV cache, reordered rows of it, or left padding.

    Examples are recurrent layers that read padding, and encoders. Only checked in float32, because bfloat16 rounding
    hides the difference.

    Raises:
        UserError: the model ``name`` is not supported.
    """
    if model.dtype != torch.float32:
        return
    token_ids = torch.tensor([[1, 2, 3], [0, 2, 3]], device=model.device)
    mask = torch.tensor([[1, 1, 1], [0, 1, 1]], device=model.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    order: Any = torch.tensor([1, 0, 1], device=model.device)
    try:
        for columns, rows in ((slice(0, 2), [0, 1]), (slice(2, 3), [1, 0, 1])):
            stepped = model(
                input_ids=token_ids[rows, columns],
                attention_mask=mask[rows, : columns.stop],
                position_ids=positions[rows, columns],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            cache.reorder_cache(order)
        whole, padded = token_ids[:1], token_ids[1:, 1:]
        uncached = torch.stack([model(input_ids=row, use_cache=False).logits[0, -1] for row in (padded, whole, padded)])
        reason = "its logits change with a KV cache, with reordered rows of it, or with left padding"
        finite = uncached.isfinite()  # a grammar masks some tokens with -inf
        gap, spread = (stepped - uncached)[finite].abs().max(), uncached[finite].std(correction=0)
        supported = torch.equal(finite, stepped.isfinite()) and float(gap) <= 1e-2 * float(spread) + 1e-5
    except Exception as error:
        reason, supported = str(error), False
    if not supported:
        raise UserError(
            f"{name} is not supported by rollout.engine=transformers: {reason}: set rollout.engine=vllm, or "
            "choose another model"
        )


def pad_left(prompts: Sequence[np.ndarray], device: torch.device) -> tuple[Tensor, Tensor]:
    """Left-pad prompts to token ids int64 [B, P] and an attention mask int64 [B, P]."""
    longest = max(len(prompt) for prompt in prompts)
    token_ids = np.zeros((len(prompts), longest), np.int64)
    mask = np.zeros((len(prompts), longest), np.int64)
    for row, prompt in enumerate(prompts):
        token_ids[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    return torch.from_numpy(token_ids).to(device), torch.from_numpy(mask).to(device)
