"""The interface of tasks and their sources, and loading the configured task.

The protocols are also base classes: methods with a body are defaults.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from rlgaf_ray.config.task import ANSWER_QUALITY, TaskSection
from rlgaf_ray.data.counts import RowCounts
from rlgaf_ray.errors import UserError
from rlgaf_ray.types import MIN_TEXTS, Demonstration, EvaluationPart, Metrics, Rollout, Row, TextBlocks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Measure(Protocol):
    """Task-specific evaluation metrics of answers, one per prompt in the order of ``Task.evaluation``.

    Metrics are named ``eval/...``; fractions are in [0, 1]. ``NAME_stderr`` is the standard error of ``NAME``, and
    ``NAME_real`` the same metric of the real answers. Metrics unknown to the package are shown first, in the order of
    the returned dictionary.
    """

    @property
    def baseline(self) -> tuple[str, ...]:
        """Names of the SFT model's metrics that ``compared`` needs."""
        return ()

    @abstractmethod
    def __call__(self, texts: Sequence[str]) -> Metrics:
        """Return the metrics of one answer per prompt."""
        ...

    def each(self, texts: Sequence[str]) -> np.ndarray | None:
        """Return the quality of every answer, float [N], whose mean is the task's quality metric; None if undefined."""
        return None

    def repeated(self, samples: Sequence[Sequence[str]], logprobs: np.ndarray | None) -> Metrics:
        """Return the metrics of k answers per prompt.

        Args:
            samples: [N][k].
            logprobs: of each sampled answer, float [N, k]; None if answers were selected among candidates.
        """
        return {}

    def quick(self, texts: Sequence[str]) -> Metrics:
        """Return cheap metrics of answers to the first prompts, named without the prefix ``eval/``."""
        return {}

    def derived(self, metrics: Metrics) -> Metrics:
        """Return metrics that combine this measure's with those of the two-sample test."""
        return {}

    def compared(self, metrics: Metrics, sft: Metrics) -> Metrics:
        """Return metrics that compare ``metrics`` with the SFT model's."""
        return {}


class Task(Protocol):
    """Tokenised demonstrations by part. Parts share no text and are the same in every run."""

    demonstrations: list[Demonstration]
    """Real answers. The ``prompt_id`` of a training ``Prompt`` is the row of its demonstration."""

    rows: Sequence[Row] = ()
    """Further columns of each demonstration for reward functions; empty unless they were kept."""

    @property
    def prompts(self) -> Sequence[np.ndarray]:
        """Prompts without answers, used only for rollouts (``rollout.free_prompts``)."""
        return ()

    def other_prompts(self, row: int) -> Sequence[np.ndarray] | None:
        """Return prompts for which the response of demonstration ``row`` is wrong, at least one and none to evaluate.

        None: the prompts of the other demonstrations.
        """
        return None

    def negative_prompts(self, prompt_ids: np.ndarray) -> Sequence[np.ndarray]:
        """Return training prompts for which a response to this prompt is wrong.

        By default the other prompts of the demonstrations. Raises ``UserError`` if there are none.
        """
        others = {item.prompt_ids.tobytes(): item.prompt_ids for item in self.demonstrations}
        others.pop(prompt_ids.tobytes(), None)
        if not others:
            raise UserError("all demonstrations have the same prompt")
        return [*others.values()]

    @property
    def legal(self) -> np.ndarray | None:
        """Table of allowed next tokens, bool [V, V], for generators trained from scratch; None allows all."""
        return None

    contrast: list[Demonstration]
    """Negative examples for the discriminator: unwanted answers, or real answers to other prompts."""

    notes: Sequence[str] = ()
    """Notes to print before the run starts."""

    end_ids: Collection[int] = ()
    """Token ids that end a demonstration. They also end rollouts, in addition to those in the model's files."""

    @property
    def chats(self) -> bool:
        """Whether demonstrations are chats, whose prompts the tokenizer's template renders."""
        return False

    @property
    def measure(self) -> str | Callable[[EvaluationPart, int], Measure]:
        """A name in ``evaluation.measures.MEASURES``, or a function of part and number of prompts.

        By default F1 and exact match against the real response.
        """
        return "responses"

    @property
    def counts(self) -> RowCounts | None:
        """Counts of used and dropped rows, for ``data.json``; None if unknown."""
        return None

    @property
    def unwanted(self) -> str:
        """Name of the content of ``contrast``, for messages."""
        return "answers to other prompts"

    @abstractmethod
    def evaluation(self, part: EvaluationPart) -> list[Demonstration]:
        """Return the prompts to evaluate on and their real answers."""
        ...

    @property
    @abstractmethod
    def checksum(self) -> str:
        """SHA-256 of all parts; the same for every seed and tokenizer."""
        ...

    @property
    def base_key(self) -> Sequence[str]:
        """Settings that determine ``warmup_blocks``, besides ``checksum``; part of the base warm-up's cache key."""
        return [str(self.max_tokens)]

    @property
    def warmup_key(self) -> Sequence[str]:
        """Settings that determine demonstrations and contrast, besides ``checksum`` and the lengths in ``task``.

        They are part of the cache keys of SFT, the discriminator's warm-up and the contrast.
        """
        return ()

    @property
    @abstractmethod
    def max_tokens(self) -> int:
        """Maximum number of tokens of prompt plus response."""
        ...

    def warmup_blocks(self, block_tokens: int) -> TextBlocks:
        """Return the data of the base warm-up; by default the demonstrations, with loss on the responses.

        ``block_tokens``: the row length for tasks that pack continuous text.
        """
        return text_blocks(self.demonstrations, num_tokens=self.max_tokens)

    def discriminator_warmup(self) -> tuple[list[Demonstration], np.ndarray]:
        """Return demonstrations and contrast that no evaluation uses, and labels: int64, 1 = demonstration."""
        rows = [*self.demonstrations, *self.contrast]
        return rows, (np.arange(len(rows)) < len(self.demonstrations)).astype(np.int64)

    def evaluated_ids(self, item: Demonstration | Rollout) -> np.ndarray:
        """Return the tokens that the evaluation decodes; by default the response."""
        return item.response_ids


class TaskSource(Protocol):
    """A task's data, read and split, but not yet tokenised."""

    @property
    def quality(self) -> str:
        """The metric that selects the best checkpoint and that the guard monitors; higher is better."""
        return ANSWER_QUALITY

    @property
    def full_length(self) -> bool:
        """Whether every response has ``task.response_tokens`` tokens; end of text is then never sampled."""
        return False

    @property
    def texts(self) -> Sequence[tuple[str, str]]:
        """Prompt and response of the rows to check against the built-in base model's training reviews."""
        return ()

    @property
    def warmup_texts(self) -> Sequence[str]:
        """Texts of the base warm-up; used only to train the tokenizer of a model from scratch."""
        return ()

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer of a model from scratch; None: train one on ``warmup_texts``."""
        return None

    def with_ends(self, token_ids: Collection[int]) -> TaskSource:
        """Return the source with the end-of-text ids of the model's files; by default they are not needed."""
        return self

    @abstractmethod
    def tokenized(self, tokenizer: PreTrainedTokenizerBase, cache_folder: Path) -> Task:
        """Tokenise the data. ``cache_folder``: for tokens that take long to compute."""
        ...


def text_blocks(
    items: Sequence[Demonstration], *, num_tokens: int, pad_token_id: int = 0, prompts_learned: bool = False
) -> TextBlocks:
    """Pad each demonstration to a row of ``num_tokens``; responses have loss, prompts only with ``prompts_learned``."""
    token_ids = np.full((len(items), num_tokens), pad_token_id, np.int32)
    learned = np.zeros(token_ids.shape, bool)
    for row, item in enumerate(items):
        start, end = len(item.prompt_ids), len(item.prompt_ids) + len(item.response_ids)
        token_ids[row, :end] = np.concatenate([item.prompt_ids, item.response_ids])
        learned[row, 1 if prompts_learned else start : end] = True
    return TextBlocks(token_ids, learned)


def load_source(task: TaskSection, *, base: bool, keep_rows: bool = False) -> TaskSource:
    """Read and split the data of ``task.name``. Raises ``UserError`` with the fix if they are unusable.

    Args:
        base: the run trains the base model; tasks of pairs then keep a part for it.
        keep_rows: keep the rows' columns for ``Task.rows``.
    """
    module, _, name = task.traits.source.partition(":")
    source: TaskSource = getattr(import_module(module), name)(task, base=base, keep_rows=keep_rows)
    return source


def evaluation_set(task: Task, num_prompts: int, part: EvaluationPart = "validation") -> list[Demonstration]:
    """Return the first ``num_prompts`` of a part, or all. Raises ``UserError`` if it has fewer than ``MIN_TEXTS``."""
    items = task.evaluation(part)
    if len(items) < MIN_TEXTS:
        raise UserError(
            f"the part {part} has only {len(items)} demonstrations of the right length, but self-BLEU needs "
            f"{MIN_TEXTS}: raise its share (task.jsonl.shares, task.hub.shares, task.squad.shares), or give more data"
        )
    return items[:num_prompts]
