"""The tasks ``jsonl`` and ``hub``: demonstrations from files or a Hugging Face dataset, plain or chat."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlgaf_ray.config.rows import Paths, RowSettings
from rlgaf_ray.config.task import TaskSection
from rlgaf_ray.data.chat import ChatTemplate
from rlgaf_ray.data.columns import Example, read_example
from rlgaf_ray.data.extra_rows import Extra, read_base_row, read_prompt
from rlgaf_ray.data.files import read_rows
from rlgaf_ray.data.formats import PlacedRow, without_nested_nulls
from rlgaf_ray.data.pair import Pair, Turn
from rlgaf_ray.data.pairs import PairSource, PairTask
from rlgaf_ray.data.task import TaskSource
from rlgaf_ray.errors import UserError
from rlgaf_ray.types import EvaluationPart, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Read = Callable[[Mapping[str, Any], RowSettings, str], Example]


def hub_rows(dataset: str, *, subset: str | None = None, split: str = "train", key: str) -> Iterable[PlacedRow]:
    """Load rows of a hub dataset or a dataset folder. Raises ``UserError`` naming ``key`` if that fails."""
    import datasets  # slow import, needed only here
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
    """Parsed and checked rows, before a chat template is applied."""

    task: TaskSection
    settings: RowSettings
    examples: list[Example]  # of all parts except those in ``own``
    own: dict[str, list[Example]]  # of parts that have their own files or splits
    base: bool  # keep a part for the base warm-up
    kept: dict[str, Row]  # full rows by place, for reward functions; empty without ``keep_rows``
    prompts: Sequence[Example] = ()  # without answers
    base_texts: Sequence[str] = ()  # for the base warm-up, in addition to its pairs
    ends: Collection[int] = ()  # end-of-text ids from the model's files

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
        base_rows: Iterable[PlacedRow] | None = None,
        prompts: Iterable[PlacedRow] = (),
    ) -> RowSource:
        """Parse all rows.

        Args:
            base_rows: rows only for the base warm-up.
            prompts: rows without answers, only for rollouts.

        Raises ``UserError`` naming the place of a row that cannot be parsed.
        """
        if base_rows is not None and not base:
            raise UserError(
                f"task.{task.name}.base is for the base warm-up, but warmup.generator.steps=0 disables it: set "
                f"warmup.generator.steps, or remove task.{task.name}.base"
            )
        kept: dict[str, Row] = {}

        def examples(placed: Iterable[PlacedRow], read: Read = read_example) -> Iterator[Example]:
            for place, row in placed:
                example = read(row, settings, place)
                if keep_rows:
                    kept[place] = {**row, "prompt": example.prompt}
                yield example

        parts: dict[str, list[Example]] = {part: list(examples(other)) for part, other in own.items()}
        texts: list[str] = []
        if base_rows is not None:
            read = [read_base_row(row, settings, place) for place, row in base_rows]
            texts = [item for item in read if isinstance(item, str)]
            parts = {"base": [item for item in read if not isinstance(item, str)], **parts}
        return cls(task, settings, list(examples(rows)), parts, base, kept, list(examples(prompts, read_prompt)), texts)

    @property
    def texts(self) -> list[tuple[str, str]]:
        """Prompt and response of every row as plain text, without a chat template."""
        return [(example.plain_prompt, example.answer) for example in self._all]

    @property
    def warmup_texts(self) -> Sequence[str]:
        source = self._split(lambda example: [_pair(example.plain_prompt, example.answer)])
        return replace(source, extra=Extra(texts=self.base_texts)).warmup_texts

    def with_ends(self, token_ids: Collection[int]) -> RowSource:
        return replace(self, ends=token_ids)

    def tokenized(self, tokenizer: PreTrainedTokenizerBase, cache_folder: Path) -> PairTask:
        """Render chats with the tokenizer's template and tokenise. Raises ``UserError`` naming a row that fails."""
        template = None
        if self._chats:
            now = datetime.fromisoformat(self.task.date) if self.task.date else datetime.now()
            template = ChatTemplate(tokenizer, self.settings, ends=self.ends, now=now)
        elif self.settings.for_chats:
            raise UserError(f"task: {self.settings.for_chats} applies to chats, but all rows are plain: remove it")

        def rendered(example: Example) -> list[Pair]:
            row = self.kept.get(example.place, {})
            if isinstance(example.prompt, str):
                pairs = [replace(_pair(example.prompt, example.answer), row=row)]
            else:
                assert template is not None
                answer = example.response
                assert not isinstance(answer, str), "the answer of a chat is a message"
                tools = example.tools or self.settings.tools
                pairs = list(template.pairs([*example.prompt, answer], tools, row, example.place))
            if example.rejected is not None:  # it rejects the last answer
                pairs[-1] = replace(pairs[-1], rejected=rendered(example.rejected)[-1])
            return pairs

        source = replace(
            self._split(rendered),
            ends=self.ends,
            rendering=template.key if template else "",
            extra=Extra([self._prompt_pair(example, template) for example in self.prompts], self.base_texts),
        )
        return source.tokenized(tokenizer, cache_folder)

    def _prompt_pair(self, example: Example, template: ChatTemplate | None) -> Pair:
        """Render a prompt like the demonstrations. Raises ``UserError`` for a chat if the demonstrations are plain."""
        prompt, row = example.prompt, self.kept.get(example.place, {})
        if template is None:
            if not isinstance(prompt, str):
                raise UserError(f"{example.place}: it is a chat, but the demonstrations are plain: use one format")
            return replace(_pair(prompt, ""), row=row)
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        turn = Turn(template.prompt(messages, example.tools or self.settings.tools, example.place), "")
        return replace(_pair(example.plain_prompt, ""), row={**row, "prompt": messages} if row else {}, turn=turn)

    @property
    def _chats(self) -> bool:
        return any(not isinstance(example.prompt, str) for example in self._all)

    @property
    def _all(self) -> list[Example]:
        return [*self.examples, *(example for examples in self.own.values() for example in examples)]

    def _split(self, pairs: Callable[[Example], Sequence[Pair]]) -> PairSource:
        def of(examples: Sequence[Example]) -> list[Pair]:
            return [pair for example in examples for pair in pairs(example)]

        return PairSource.split(
            self.task,
            self.settings,
            of(self.examples),
            base=self.base,
            own={part: of(examples) for part, examples in self.own.items()},
            remarks=_remarks(self._all),
        )


def jsonl_source(task: TaskSection, *, base: bool, keep_rows: bool = False) -> RowSource:
    settings = task.jsonl
    paths: dict[EvaluationPart, Paths] = {"validation": settings.validation_path, "test": settings.test_path}
    own = {part: read_rows(path, f"task.jsonl.{part}_path") for part, path in paths.items() if path}
    return RowSource.load(
        task,
        settings,
        read_rows(settings.path, "task.jsonl.path"),
        own,
        base=base,
        keep_rows=keep_rows,
        base_rows=read_rows(settings.base, "task.jsonl.base") if settings.base else None,
        prompts=read_rows(settings.prompts, "task.jsonl.prompts") if settings.prompts else (),
    )


def hub_source(task: TaskSection, *, base: bool, keep_rows: bool = False) -> RowSource:
    settings, dataset = task.hub, task.hub.dataset
    assert dataset is not None, "the config refuses hub without a data set"
    splits: dict[EvaluationPart, str | None] = {"validation": settings.validation_split, "test": settings.test_split}
    own = {
        part: hub_rows(dataset, subset=settings.subset, split=split, key=f"task.hub.{part}_split")
        for part, split in splits.items()
        if split
    }
    others = {
        key: hub_rows(name, split=split, key=f"task.hub.{key}")
        for key, name, split in (
            ("base", settings.base, settings.base_split),
            ("prompts", settings.prompts, settings.prompts_split),
        )
        if name
    }
    return RowSource.load(
        task,
        settings,
        hub_rows(dataset, subset=settings.subset, split=settings.split, key="task.hub.dataset"),
        own,
        base=base,
        keep_rows=keep_rows,
        base_rows=others.get("base"),
        prompts=others.get("prompts", ()),
    )


def _remarks(examples: Sequence[Example]) -> dict[str, int]:
    """Count suspicious rows that are nevertheless used."""
    seen = {(repr(example.prompt), repr(example.response)) for example in examples}
    return {
        "rows that repeat an earlier one": len(examples) - len(seen),
        "rows with an empty response": sum(not example.answer for example in examples),
    }


def _pair(prompt: str, response: str) -> Pair:
    return Pair(before="", context="", after=prompt, response=response, group=prompt, references=(response,))
