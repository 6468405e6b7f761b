"""What a run needs of its task, and the task that a config names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from rlgaf_ray.config.task import TaskSection
from rlgaf_ray.data.imdb import ImdbSource
from rlgaf_ray.data.rows import RowSource
from rlgaf_ray.data.squad import squad_source
from rlgaf_ray.errors import UserError
from rlgaf_ray.types import Demonstration, EvaluationPart, Rollout, Row, TextBlocks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Task(Protocol):
    """Demonstrations in their parts, as token ids. Parts share no text, and are the same in every run."""

    demonstrations: list[Demonstration]
    """Real answers; a ``Prompt`` of training has the row of its demonstration as ``prompt_id``."""

    rows: list[Row]
    """What reward functions read beside prompt and response, of each demonstration; empty where nothing was kept."""

    contrast: list[Demonstration]
    """What the answers shall not be like: of the unwanted kind, or true answers to other prompts."""

    def evaluation(self, part: EvaluationPart) -> list[Demonstration]:
        """Prompts to evaluate on and their real answers."""
        ...

    @property
    def checksum(self) -> str:
        """SHA-256 of all parts; the same for every seed and tokenizer."""
        ...

    @property
    def max_tokens(self) -> int:
        """The longest prompt with the longest response."""
        ...

    def warmup_blocks(self, block_tokens: int) -> TextBlocks:
        """What the generator's warm-up reads."""
        ...

    def discriminator_warmup(self) -> tuple[list[Demonstration], np.ndarray]:
        """Demonstrations and contrast that are not evaluated on, and labels (int64, 1 = demonstration)."""
        ...

    def evaluated_ids(self, item: Demonstration | Rollout) -> np.ndarray:
        """The tokens that the evaluation reads as text."""
        ...


class TaskSource(Protocol):
    """A task read and split, before there is a tokenizer."""

    @property
    def warmup_texts(self) -> Sequence[str]:
        """The text of the generator's warm-up, for a tokenizer of the run's own."""
        ...

    def tokenized(self, tokenizer: PreTrainedTokenizerBase, cache_folder: Path) -> Task: ...


def load_source(task: TaskSection, *, base: bool, keep_rows: bool = False) -> TaskSource:
    """Read and split the data that ``task.name`` names; ``UserError`` with the fix for what cannot be used.

    ``base``: the run trains the base model, so that pairs keep a part for it. ``keep_rows``: for ``Task.rows``.
    """
    match task.name:
        case "imdb":
            return ImdbSource.load(task)
        case "squad":
            return squad_source(task, base=base, keep_rows=keep_rows)
        case "jsonl" | "hub":
            return RowSource.load(task, base=base, keep_rows=keep_rows)


def evaluation_set(task: Task, num_prompts: int, part: EvaluationPart = "validation") -> list[Demonstration]:
    """The first ``num_prompts`` of the part; ``UserError`` where it has fewer."""
    items = task.evaluation(part)
    if num_prompts > len(items):
        raise UserError(
            f"evaluation.num_prompts={num_prompts}, but the part {part} has only {len(items)} demonstrations of the "
            "right length: lower evaluation.num_prompts, or give the part more (task.squad.shares, task.jsonl.shares)"
        )
    return items[:num_prompts]
