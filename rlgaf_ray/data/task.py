"""What a run needs of its task, and the task that a config names.

The protocols are also base classes: what has a body here is the default of a class that inherits it.
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
from rlgaf_ray.types import Demonstration, EvaluationPart, Metrics, Rollout, Row, TextBlocks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Measure(Protocol):
    """What only this task can say of answers, one a prompt in the evaluation's order.

    Its metrics are named ``eval/...``. Shares lie in 0 to 1; ``NAME_stderr`` beside a metric is its standard error,
    ``NAME_real`` the same measure of real answers. Those that the package does not know are shown first, in the order
    of the returned dictionary.
    """

    @property
    def baseline(self) -> tuple[str, ...]:
        """Names of the metrics that ``compared`` wants of the SFT model."""
        return ()

    @abstractmethod
    def __call__(self, texts: Sequence[str]) -> Metrics:
        """Metrics of one answer to each prompt, in the order of ``Task.evaluation``."""
        ...

    def each(self, texts: Sequence[str]) -> np.ndarray | None:
        """The task's quality of every single answer, float [N], whose mean is its metric; None where there is none."""
        return None

    def repeated(self, samples: Sequence[Sequence[str]], logprobs: np.ndarray | None) -> Metrics:
        """Metrics of several answers to each prompt, [N][k], and of their log-probs when sampled, float [N, k].

        Without ``logprobs`` the answers were chosen among candidates.
        """
        return {}

    def quick(self, texts: Sequence[str]) -> Metrics:
        """The cheapest measures of answers to the first prompts, named without a group."""
        return {}

    def compared(self, metrics: Metrics, sft: Metrics) -> Metrics:
        """What follows from all other metrics and from the SFT model's."""
        return {}


class Task(Protocol):
    """Demonstrations in their parts, as token ids. Parts share no text, and are the same in every run."""

    demonstrations: list[Demonstration]
    """Real answers; a ``Prompt`` of training has the row of its demonstration as ``prompt_id``."""

    rows: Sequence[Row] = ()
    """What reward functions read beside prompt and response, of each demonstration; empty where nothing was kept."""

    @property
    def prompts(self) -> Sequence[np.ndarray]:
        """Prompts without answers, for rollouts alone (``rollout.free_prompts``)."""
        return ()

    def other_prompts(self, row: int) -> Sequence[np.ndarray] | None:
        """Prompts that the response of demonstration ``row`` is wrong for, in the order in which they are used.

        None: the prompts of the other demonstrations, in turn.
        """
        return None

    @property
    def legal(self) -> np.ndarray | None:
        """Which token may follow which, bool [V, V], for generators trained from nothing; None: any."""
        return None

    contrast: list[Demonstration]
    """What the answers shall not be like: of the unwanted kind, or true answers to other prompts."""

    notes: Sequence[str] = ()
    """Sentences to report before the run starts."""

    end_ids: Collection[int] = ()
    """Token ids that end a demonstration; rollouts end there too, beside those that the model's files name."""

    @property
    def measure(self) -> str | Callable[[EvaluationPart, int], Measure]:
        """A name in ``evaluation.measures.MEASURES``, or what makes the measure of a part's first so many prompts.

        By default F1 and exact match against the real response.
        """
        return "responses"

    @property
    def counts(self) -> RowCounts | None:
        """What became of the rows that were read, for the run's record; None where nothing is known."""
        return None

    @property
    def unwanted(self) -> str:
        """What ``contrast`` has, in words."""
        return "answers to other prompts"

    @abstractmethod
    def evaluation(self, part: EvaluationPart) -> list[Demonstration]:
        """Prompts to evaluate on and their real answers."""
        ...

    @property
    @abstractmethod
    def checksum(self) -> str:
        """SHA-256 of all parts; the same for every seed and tokenizer."""
        ...

    @property
    def base_key(self) -> Sequence[str]:
        """Settings that decide ``warmup_blocks`` beside ``checksum``: the base warm-up's cache key has them."""
        return [str(self.max_tokens)]

    @property
    def warmup_key(self) -> Sequence[str]:
        """Settings that decide demonstrations and contrast beside ``checksum`` and the lengths in ``task``.

        The cache keys of SFT, the discriminator's warm-up and the contrast have them.
        """
        return ()

    @property
    @abstractmethod
    def max_tokens(self) -> int:
        """The longest prompt with the longest response."""
        ...

    def warmup_blocks(self, block_tokens: int) -> TextBlocks:
        """What the generator's base warm-up reads; by default the demonstrations, of which the responses are learned.

        ``block_tokens``: the length of rows of text without an end of its own.
        """
        return text_blocks(self.demonstrations, num_tokens=self.max_tokens)

    def discriminator_warmup(self) -> tuple[list[Demonstration], np.ndarray]:
        """Demonstrations and contrast that are not evaluated on, and labels (int64, 1 = demonstration)."""
        rows = [*self.demonstrations, *self.contrast]
        return rows, (np.arange(len(rows)) < len(self.demonstrations)).astype(np.int64)

    def evaluated_ids(self, item: Demonstration | Rollout) -> np.ndarray:
        """The tokens that the evaluation reads as text; by default the response."""
        return item.response_ids


class TaskSource(Protocol):
    """A task read and split, before there is a tokenizer."""

    @property
    def quality(self) -> str:
        """The metric that marks the best checkpoint and is watched by the guard; higher is better."""
        return ANSWER_QUALITY

    @property
    def full_length(self) -> bool:
        """Every response has ``task.response_tokens`` tokens, so that end of text is never sampled."""
        return False

    @property
    def texts(self) -> Sequence[tuple[str, str]]:
        """Prompt and response of every row that the built-in base model may have read as a film review."""
        return ()

    @property
    def warmup_texts(self) -> Sequence[str]:
        """The text of the generator's warm-up; read only by a model from scratch, which trains a tokenizer on it."""
        return ()

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer of a model trained from scratch; None: one is trained on ``warmup_texts``."""
        return None

    def with_ends(self, token_ids: Collection[int]) -> TaskSource:
        """For sources that ask which token ids end a rollout, as far as the model's files name them."""
        return self

    @abstractmethod
    def tokenized(self, tokenizer: PreTrainedTokenizerBase, cache_folder: Path) -> Task:
        """``cache_folder``: for tokens that take long to make."""
        ...


def text_blocks(
    items: Sequence[Demonstration], *, num_tokens: int, pad_token_id: int = 0, prompts_learned: bool = False
) -> TextBlocks:
    """One demonstration a row of ``num_tokens``; responses are learned, and prompts where that is asked for."""
    token_ids = np.full((len(items), num_tokens), pad_token_id, np.int32)
    learned = np.zeros(token_ids.shape, bool)
    for row, item in enumerate(items):
        start, end = len(item.prompt_ids), len(item.prompt_ids) + len(item.response_ids)
        token_ids[row, :end] = np.concatenate([item.prompt_ids, item.response_ids])
        learned[row, 1 if prompts_learned else start : end] = True
    return TextBlocks(token_ids, learned)


def load_source(task: TaskSection, *, base: bool, keep_rows: bool = False) -> TaskSource:
    """Read and split the data that ``task.name`` names; ``UserError`` with the fix for what cannot be used.

    ``base``: the run trains the base model, so that pairs keep a part for it. ``keep_rows``: for ``Task.rows``.
    """
    module, _, name = task.traits.source.partition(":")
    if not module:
        raise UserError(
            f"task.name={task.name} stands for a task that is passed in from Python: "
            "call rlgaf_ray.train or rlgaf_ray.evaluate with task=, or set another task.name"
        )
    source: TaskSource = getattr(import_module(module), name)(task, base=base, keep_rows=keep_rows)
    return source


def evaluation_set(task: Task, num_prompts: int, part: EvaluationPart = "validation") -> list[Demonstration]:
    """The first ``num_prompts`` of the part; ``UserError`` where it has fewer."""
    items = task.evaluation(part)
    if num_prompts > len(items):
        raise UserError(
            f"evaluation.num_prompts={num_prompts}, but the part {part} has only {len(items)} demonstrations of the "
            "right length: lower evaluation.num_prompts, or give the part more (task.squad.shares, task.jsonl.shares)"
        )
    return items[:num_prompts]
