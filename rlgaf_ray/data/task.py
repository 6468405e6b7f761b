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
from rlgaf_ray.types import Demonstration, Rollout, TextBlocks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Task(Protocol):
    """Demonstrations in their parts, as token ids. Parts share no text, and are the same in every run."""

    demonstrations: list[Demonstration]
    """Real answers; a ``Prompt`` of training has the row of its demonstration as ``prompt_id``."""

    contrast: list[Demonstration]
    """What the answers shall not be like: of the unwanted kind, or true answers to other prompts."""

    held_out: list[Demonstration]
    """The evaluation's prompts and their real answers."""

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
        """Demonstrations and contrast of a part of their own, and labels (int64, 1 = demonstration)."""
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


def load_source(task: TaskSection) -> TaskSource:
    """Read and split the data that ``task.name`` names; ``ValueError`` with the fix for what cannot be used."""
    match task.name:
        case "imdb":
            return ImdbSource.load(task)
        case "squad":
            return squad_source(task)
        case "jsonl" | "hub":
            return RowSource.load(task)


def evaluation_set(task: Task, num_prompts: int) -> list[Demonstration]:
    """The first ``num_prompts`` of ``held_out``; ``ValueError`` where it has fewer."""
    if num_prompts > len(task.held_out):
        raise ValueError(
            f"evaluation.num_prompts={num_prompts}, but the task has only {len(task.held_out)} held-out "
            "demonstrations of the right length: give the held-out part more (task.imdb.splits.held_out, "
            "task.squad.shares.held_out, ...) or lower evaluation.num_prompts"
        )
    return task.held_out[:num_prompts]
