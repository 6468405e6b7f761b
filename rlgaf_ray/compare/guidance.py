"""SFT with a label token, and guided sampling from it: the supervised use of labelled negatives.

One model is fine-tuned on demonstrations and labelled negatives; a label before the prompt tells them apart, as in CTRL
(Keskar et al. 2019, arXiv 1909.05858). Sampling subtracts what the negatives' label asks for: classifier-free guidance
(Ho & Salimans 2022, arXiv 2207.12598), for language models by Sanchez et al. 2023 (arXiv 2306.17806) with a negative
prompt. No discriminator.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from rlgaf_ray.config import Config
from rlgaf_ray.data.task import Task
from rlgaf_ray.engines.transformers import TransformersEngine, pad_left
from rlgaf_ray.errors import UserError
from rlgaf_ray.run.checks import check_lengths
from rlgaf_ray.run.preparation import Data
from rlgaf_ray.types import Demonstration, Prompt, SamplingSettings

WANTED, UNWANTED = "Good: ", "Bad: "


class Labels:
    """Token ids that stand before the prompts of wanted and of unwanted responses, after a BOS token."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.wanted, self.unwanted = (
            np.array(tokenizer.encode(text, add_special_tokens=False), np.int32) for text in (WANTED, UNWANTED)
        )
        self._begin = tokenizer.bos_token_id
        if self.wanted.tolist() == self.unwanted.tolist():
            raise UserError(f"its tokenizer encodes the labels {WANTED!r} and {UNWANTED!r} alike")

    @property
    def num_tokens(self) -> int:
        return max(len(self.wanted), len(self.unwanted))

    def before(self, label: np.ndarray, prompt_ids: np.ndarray) -> np.ndarray:
        """Return the prompt with a label before its first token, or after it if that is BOS."""
        start = int(prompt_ids[0] == self._begin)
        return np.concatenate([prompt_ids[:start], label, prompt_ids[start:]])

    def rows(self, task: Task) -> list[Demonstration]:
        """Return the demonstrations and the labelled negatives, with their labels.

        Raises ``UserError`` if there are no negatives.
        """
        if not task.contrast:
            raise UserError("it needs labelled negatives, and the task has none")
        labelled = [(self.wanted, task.demonstrations), (self.unwanted, task.contrast)]
        return [
            Demonstration(self.before(label, item.prompt_ids), item.response_ids)
            for label, items in labelled
            for item in items
        ]


def check_labels(config: Config, data: Data) -> None:
    """Raise ``UserError`` if a method with label tokens does not work with this config or data."""
    labels = Labels(data.tokenizer)
    labels.rows(data.task)
    if (weight := config.warmup.sft.contrastive_weight) > 0:
        raise UserError(f"its rows have no other prompts for warmup.sft.contrastive_weight={weight:g}: remove that key")
    try:
        check_lengths(config, data.task.max_tokens + labels.num_tokens)
    except UserError as error:
        raise UserError(f"with a label of {labels.num_tokens} tokens, {error}") from error


class GuidedEngine(TransformersEngine):
    """Samples with guidance from a model that was fine-tuned on ``Labels.rows``. Prompts are given without label.

    Args:
        model_folder: a Hugging Face folder.
        labels: the labels that the model was trained with.
        guidance: weight of the guidance; 1: condition on the wanted label alone.
    """

    def __init__(self, model_folder: Path, labels: Labels, guidance: float, config: Config) -> None:
        super().__init__(model_folder, dtype=config.model.dtype, trust_remote_code=config.model.trust_remote_code)
        self._labels, self._guidance = labels, guidance

    def _sample(
        self, prompts: Sequence[Prompt], sampling: SamplingSettings, seeds: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Return token ids int32 [B, T], their log-probs float32 [B, T] and the response length of each row."""
        repeated = [prompt for prompt in prompts for _ in range(sampling.samples_per_prompt)]
        wanted, unwanted = (
            _Rows(self._model, [self._labels.before(label, prompt.token_ids) for prompt in repeated])
            for label in (self._labels.wanted, self._labels.unwanted)
        )
        sampled = self._responses(repeated, sampling, seeds)
        rows, token = torch.arange(len(repeated), device=self._model.device), None
        while sampled.running.any():
            logits = guided_logits(wanted.next_logits(token), unwanted.next_logits(token), guidance=self._guidance)
            token = sampled.draw(logits, rows)
        return sampled.arrays()


class _Rows:
    """A batch of sequences that grow by a token per row, with their KV cache."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[np.ndarray]) -> None:
        self.model = model
        self.step_ids, self.attention_mask = pad_left(prompts, model.device)
        self.cache = DynamicCache(config=model.config)

    def next_logits(self, token: Tensor | None) -> Tensor:
        """Append ``token`` [B], unless it is the first call, and return the next logits: [B, V]."""
        if token is not None:
            self.step_ids = token[:, None]
            self.attention_mask = torch.nn.functional.pad(self.attention_mask, (0, 1), value=1)
        positions = (self.attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -self.step_ids.shape[1] :]
        output = self.model(
            input_ids=self.step_ids,
            attention_mask=self.attention_mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits = output.logits[:, -1]
        assert isinstance(logits, Tensor)
        return logits


def guided_logits(wanted: Tensor, unwanted: Tensor, *, guidance: float) -> Tensor:
    """Compute log p_unwanted + w (log p_wanted - log p_unwanted) with the guidance w, from logits: [B, V] -> [B, V].

    Tokens that the wanted label gives probability 0, such as illegal ones, keep it. The result is float32.
    """
    wanted, unwanted = wanted.float().log_softmax(-1), unwanted.float().log_softmax(-1)
    return torch.where(wanted.isinf(), wanted, unwanted + guidance * (wanted - unwanted))
