"""The tasks ``jsonl`` and ``hub``: demonstrations as rows of files or of a data set, plain or as chats."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rlgaf_ray.config.task import Paths, RowSettings, TaskSection
from rlgaf_ray.data.columns import Example, read_example
from rlgaf_ray.data.files import read_rows
from rlgaf_ray.data.formats import PlacedRow, without_nested_nulls
from rlgaf_ray.data.pair import Pair
from rlgaf_ray.data.pairs import PairSource, PairTask
from rlgaf_ray.data.task import TaskSource
from rlgaf_ray.errors import UserError
from rlgaf_ray.types import EvaluationPart, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def hub_rows(dataset: str, *, subset: str | None = None, split: str = "train", key: str) -> Iterable[PlacedRow]:
    """The rows of a data set of the hub, or of a folder; ``UserError`` naming ``key`` where it cannot be had."""
    import datasets  # takes a second to import, and only this source needs it
    from datasets.exceptions import DatasetsError

    try:
        rows = datasets.load_dataset(dataset, subset, split=split)
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise UserError(
            f"{key}: cannot load {dataset} (split {split}) from the hub or its cache: {reason}; check the name and the "
            "connection, or read a local file"
        ) from error
    return (
        (f"{dataset} ({split}), row {number}", without_nested_nulls(row)) for number, row in enumerate(rows, start=1)
    )


@dataclass(frozen=True, slots=True)
class RowSource(TaskSource):
    """Rows checked, before a chat template is known."""

    task: TaskSection
    settings: RowSettings
    examples: list[Example]  # of all parts but those of ``own``
    own: dict[EvaluationPart, list[Example]]  # of the parts with rows of their own
    base: bool  # a part is kept for the base warm-up
    kept: dict[str, Row]  # by place, the whole rows, for reward functions; empty unless asked for

    @classmethod
    def load(
        cls,
        task: TaskSection,
        settings: RowSettings,
        rows: Iterable[PlacedRow],
        own: Mapping[EvaluationPart, Iterable[PlacedRow]],
        *,
        base: bool,
        keep_rows: bool = False,
    ) -> RowSource:
        """Raises ``UserError`` naming the place of a row that is no demonstration."""
        kept: dict[str, Row] = {}

        def examples(placed: Iterable[PlacedRow]) -> Iterator[Example]:
            for place, row in placed:
                example = read_example(row, settings, place)
                if keep_rows:
                    kept[place] = {**row, "prompt": example.prompt}
                yield example

        return cls(
            task,
            settings,
            list(examples(rows)),
            {part: list(examples(other)) for part, other in own.items()},
            base,
            kept,
        )

    @property
    def texts(self) -> list[tuple[str, str]]:
        """Prompt and response of every row, before a chat template."""
        return [(example.plain_prompt, example.answer) for example in self._all]

    @property
    def warmup_texts(self) -> Sequence[str]:
        return self._split(lambda example: _pair(example.plain_prompt, example.answer)).warmup_texts

    def tokenized(self, tokenizer: PreTrainedTokenizerBase, cache_folder: Path) -> PairTask:
        """Chats through the tokenizer's template; ``UserError`` where it has none."""
        if tokenizer.chat_template is None and any(not isinstance(example.prompt, str) for example in self._all):
            raise UserError(
                "the demonstrations are chats, but the tokenizer has no chat template: take a chat model, "
                "or give plain prompt and response"
            )

        def rendered(example: Example) -> Pair:
            prompt = example.prompt
            if not isinstance(prompt, str):
                prompt = str(tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True))
            rejected = None if example.rejected is None else rendered(example.rejected)
            return replace(_pair(prompt, example.answer), row=self.kept.get(example.place, {}), rejected=rejected)

        return self._split(rendered).tokenized(tokenizer, cache_folder)

    @property
    def _all(self) -> list[Example]:
        return [*self.examples, *(example for examples in self.own.values() for example in examples)]

    def _split(self, pair: Callable[[Example], Pair]) -> PairSource:
        return PairSource.split(
            self.task,
            self.settings,
            list(map(pair, self.examples)),
            base=self.base,
            own={part: list(map(pair, examples)) for part, examples in self.own.items()},
            remarks=_remarks(self._all),
        )


def jsonl_source(task: TaskSection, *, base: bool, keep_rows: bool = False) -> RowSource:
    settings = task.jsonl
    paths: dict[EvaluationPart, Paths] = {"validation": settings.validation_path, "test": settings.test_path}
    own = {part: read_rows(path, f"task.jsonl.{part}_path") for part, path in paths.items() if path}
    rows = read_rows(settings.path, "task.jsonl.path")
    return RowSource.load(task, settings, rows, own, base=base, keep_rows=keep_rows)


def hub_source(task: TaskSection, *, base: bool, keep_rows: bool = False) -> RowSource:
    settings, dataset = task.hub, task.hub.dataset
    assert dataset is not None, "the config refuses hub without a data set"
    splits: dict[EvaluationPart, str | None] = {"validation": settings.validation_split, "test": settings.test_split}
    own = {
        part: hub_rows(dataset, subset=settings.subset, split=split, key=f"task.hub.{part}_split")
        for part, split in splits.items()
        if split
    }
    rows = hub_rows(dataset, subset=settings.subset, split=settings.split, key="task.hub.dataset")
    return RowSource.load(task, settings, rows, own, base=base, keep_rows=keep_rows)


def _remarks(examples: Sequence[Example]) -> dict[str, int]:
    """On rows that are used as they are, and may not be meant so."""
    seen = {(repr(example.prompt), repr(example.response)) for example in examples}
    return {
        "rows that repeat an earlier one": len(examples) - len(seen),
        "rows with an empty response": sum(not example.answer for example in examples),
    }


def _pair(prompt: str, response: str) -> Pair:
    return Pair(before="", context="", after=prompt, response=response, group=prompt, references=(response,))
