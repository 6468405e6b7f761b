"""The task ``imdb``: continue the first words of a film review, with the chosen sentiment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rlgaf_ray.config.schema import TaskSection
from rlgaf_ray.data.reviews import Reviews
from rlgaf_ray.data.splits import Splits
from rlgaf_ray.data.tokens import TokenizedTexts, tokenize_once
from rlgaf_ray.types import Demonstration, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ImdbTask:
    """What each part of a run reads, cut from the five splits.

    A demonstration is the beginning of a review: ``task.prompt_tokens`` tokens of prompt and exactly
    ``task.response_tokens`` of response, so that length tells a discriminator nothing. Shorter reviews are left out.

    - ``demonstrations``: of the wanted sentiment; ``contrast``: of the other one (both of split ``demonstrations``)
    - ``train_prompts``: the prompts of ``demonstrations``; ``prompt_id`` is the row there
    - ``held_out``: of the wanted sentiment, of split ``held_out``: the evaluation's prompts and their real answers
    """

    def __init__(
        self, task: TaskSection, reviews: Reviews, splits: Splits, tokens: TokenizedTexts, end_of_text: int
    ) -> None:
        self._task = task
        self._reviews = reviews
        self._splits = splits
        self._tokens = tokens
        self._end_of_text = end_of_text
        self._wanted = int(task.target == "positive")
        self.demonstrations = self._demonstrations("demonstrations", self._wanted)
        self.contrast = self._demonstrations("demonstrations", 1 - self._wanted)
        self.held_out = self._demonstrations("held_out", self._wanted)
        self.train_prompts = [
            Prompt(prompt_id=row, token_ids=item.prompt_ids) for row, item in enumerate(self.demonstrations)
        ]

    @property
    def checksum(self) -> str:
        """SHA-256 of the splits and their texts; the same for every seed and tokenizer."""
        return self._splits.checksum

    @property
    def judge_texts(self) -> tuple[list[str], np.ndarray]:
        """Whole reviews of split ``judge`` and their labels (int64, 1 = positive, whatever the target)."""
        rows = self._splits.judge
        return [self._reviews.texts[row] for row in rows], self._reviews.labels[rows]

    def warmup_blocks(self, block_tokens: int) -> np.ndarray:
        """The reviews of split ``generator_warmup`` end to end, end-of-text after each, in blocks: int32 [N, block].

        The tail that fills no block is dropped. Raises ``ValueError`` where there is no whole block.
        """
        pieces = [piece for row in self._splits.generator_warmup for piece in (self._tokens[row], [self._end_of_text])]
        stream = np.concatenate(pieces, dtype=np.int32)
        num_blocks = len(stream) // block_tokens
        if num_blocks == 0:
            raise ValueError(
                f"the generator's warm-up has {len(stream)} tokens, fewer than one block: "
                f"raise task.splits.generator_warmup or lower warmup.generator.block_tokens={block_tokens}"
            )
        return stream[: num_blocks * block_tokens].reshape(num_blocks, block_tokens)

    def discriminator_warmup(self) -> tuple[list[Demonstration], np.ndarray]:
        """Demonstrations of both sentiments from split ``discriminator_warmup``, and labels (int64, 1 = wanted)."""
        wanted = self._demonstrations("discriminator_warmup", self._wanted)
        unwanted = self._demonstrations("discriminator_warmup", 1 - self._wanted)
        return wanted + unwanted, np.repeat(np.array([1, 0], np.int64), [len(wanted), len(unwanted)])

    def evaluation_set(self, num_prompts: int) -> list[Demonstration]:
        """The first ``num_prompts`` of ``held_out``; ``ValueError`` where it has fewer."""
        if num_prompts > len(self.held_out):
            raise ValueError(
                f"evaluation.num_prompts={num_prompts}, but only {len(self.held_out)} held-out {self._task.target} "
                f"reviews are long enough: raise task.splits.held_out or lower evaluation.num_prompts"
            )
        return self.held_out[:num_prompts]

    def _demonstrations(self, split: str, label: int) -> list[Demonstration]:
        rows = getattr(self._splits, split)
        num_prompt, num_response = self._task.prompt_tokens, self._task.response_tokens
        windows = self._tokens.windows(rows[self._reviews.labels[rows] == label], num_prompt + num_response)
        if not len(windows):
            raise ValueError(
                f"no {('negative', 'positive')[label]} review of task.splits.{split}={len(rows)} has the "
                f"{num_prompt + num_response} tokens that task.prompt_tokens={num_prompt} and "
                f"task.response_tokens={num_response} ask for: lower these or raise the split"
            )
        return [Demonstration(prompt_ids=row[:num_prompt], response_ids=row[num_prompt:]) for row in windows]


def prepare_imdb(
    task: TaskSection, reviews: Reviews, splits: Splits, tokenizer: PreTrainedTokenizerBase, cache_folder: Path
) -> ImdbTask:
    """Tokenise the reviews, once: the tokens are kept under ``cache_folder``.

    Raises ``ValueError`` for a tokenizer without end-of-text, or reviews too short for the prompt and response.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer names no end-of-text token: set eos_token in its tokenizer_config.json")
    tokens = tokenize_once(reviews.texts, tokenizer, cache_folder)
    return ImdbTask(task, reviews, splits, tokens, tokenizer.eos_token_id)
