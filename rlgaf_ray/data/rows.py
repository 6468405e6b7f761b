"""The tasks ``jsonl`` and ``hub``: any {prompt, response} demonstrations, plain or as the messages of a chat."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlgaf_ray.config.task import RowSettings, TaskSection
from rlgaf_ray.data.pairs import Pair, PairSource, PairTask
from rlgaf_ray.data.task import TaskSource
from rlgaf_ray.errors import UserError
from rlgaf_ray.types import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, str]]


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """One JSON object a line; blank lines are passed over. Raises ``UserError`` naming the line."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"task.jsonl.path={path} does not exist: give a file with one JSON object a line")
    rows = []
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # strings may hold U+2028 and its like as they are
    except UnicodeDecodeError as error:
        raise UserError(f"task.jsonl.path={path} is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise UserError(f"task.jsonl.path={path}: line {number} is no JSON ({reason})") from error
        if not isinstance(row, dict):
            raise UserError(f"task.jsonl.path={path}: line {number} is no JSON object")
        rows.append(row)
    if not rows:
        raise UserError(f"task.jsonl.path={path} is empty: give a file with one JSON object a line")
    return rows


def hub_rows(dataset: str, *, subset: str | None = None, split: str = "train", key: str) -> Iterable[Mapping[str, Any]]:
    """The rows of a data set of the hub; ``UserError`` naming ``key`` where it cannot be had."""
    import datasets  # takes a second to import, and only this source needs it

    try:
        return datasets.load_dataset(dataset, subset, split=split)
    except (ConnectionError, FileNotFoundError, ValueError) as error:
        raise UserError(
            f"{key}: cannot load {dataset} (split {split}) from the hub or its cache: {error}; check the name and the "
            "connection, or read a local file"
        ) from error


@dataclass(frozen=True, slots=True)
class RowSource(TaskSource):
    """Rows checked, before a chat template is known. Raises ``UserError`` for a row without prompt and response."""

    task: TaskSection
    settings: RowSettings
    rows: list[tuple[str | Messages, str]]  # prompt, response
    base: bool  # a part is kept for the base warm-up
    kept: list[Row]  # the whole rows, for reward functions; empty unless asked for

    @classmethod
    def load(
        cls,
        task: TaskSection,
        settings: RowSettings,
        raw: Iterable[Mapping[str, Any]],
        *,
        base: bool,
        keep_rows: bool = False,
    ) -> RowSource:
        rows: list[tuple[str | Messages, str]] = []
        kept: list[Row] = []
        for number, row in enumerate(raw, start=1):
            rows.append(prompt_and_response(row, settings, number))
            if keep_rows:
                kept.append({**row, "prompt": rows[-1][0]})
        return cls(task, settings, rows, base, kept)

    @property
    def texts(self) -> list[tuple[str, str]]:
        """Prompt and response of every row, before a chat template."""
        return [(_plain(prompt), response) for prompt, response in self.rows]

    @property
    def warmup_texts(self) -> Sequence[str]:
        pairs = [_pair(_plain(prompt), response) for prompt, response in self.rows]
        return PairSource.split(self.task, self.settings, pairs, base=self.base).warmup_texts

    def tokenized(self, tokenizer: PreTrainedTokenizerBase, cache_folder: Path) -> PairTask:
        """Chats through the tokenizer's template; ``UserError`` where it has none."""
        if tokenizer.chat_template is None and any(not isinstance(prompt, str) for prompt, _ in self.rows):
            raise UserError(
                "the demonstrations are chats, but the tokenizer has no chat template: take a chat model, "
                "or give plain prompt and response"
            )

        def rendered(prompt: str | Messages) -> str:
            if isinstance(prompt, str):
                return prompt
            return str(tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True))

        pairs = [_pair(rendered(prompt), response) for prompt, response in self.rows]
        if self.kept:
            pairs = [replace(pair, row=row) for pair, row in zip(pairs, self.kept, strict=True)]
        return PairSource.split(self.task, self.settings, pairs, base=self.base).tokenized(tokenizer, cache_folder)


def jsonl_source(task: TaskSection, *, base: bool, keep_rows: bool = False) -> RowSource:
    assert task.jsonl.path is not None, "the config refuses jsonl without a path"
    return RowSource.load(task, task.jsonl, read_jsonl(task.jsonl.path), base=base, keep_rows=keep_rows)


def hub_source(task: TaskSection, *, base: bool, keep_rows: bool = False) -> RowSource:
    assert task.hub.dataset is not None, "the config refuses hub without a data set"
    raw = hub_rows(task.hub.dataset, subset=task.hub.subset, split=task.hub.split, key="task.hub.dataset")
    return RowSource.load(task, task.hub, raw, base=base, keep_rows=keep_rows)


def prompt_and_response(row: Mapping[str, Any], settings: RowSettings, number: int) -> tuple[str | Messages, str]:
    """Text, or the messages before the last, and the response. ``UserError`` naming the row."""
    where = f"task: row {number}"
    check_encodable(list(row.values()), where)
    prompt, response = row.get(settings.prompt_column), row.get(settings.response_column)
    if prompt is None and settings.messages_column in row:
        messages = row[settings.messages_column]
        if not _are_messages(messages) or len(messages) < 2 or messages[-1]["role"] != "assistant":
            raise UserError(
                f"{where}: {settings.messages_column} must be a list of {{role, content}}, the last of role assistant"
            )
        return messages[:-1], messages[-1]["content"]
    if not isinstance(response, str) or not (isinstance(prompt, str) or (prompt and _are_messages(prompt))):
        raise UserError(
            f"{where} has no {settings.prompt_column} (text or messages) with a {settings.response_column} (text), and "
            f"no {settings.messages_column}: name the columns by prompt_column, response_column, messages_column"
        )
    return prompt, response


def check_encodable(value: Any, where: str) -> None:
    """Raise ``UserError`` for text with half of a surrogate pair: JSON can hold it, a tokenizer cannot read it."""
    match value:
        case str() if any("\ud800" <= character <= "\udfff" for character in value):
            raise UserError(f"{where}: a text holds half of a surrogate pair, not UTF-8: re-encode it")
        case dict():
            check_encodable(list(value.values()), where)
        case list():
            for item in value:
                check_encodable(item, where)


def _are_messages(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, dict) and isinstance(item.get("role"), str) and isinstance(item.get("content"), str)
        for item in value
    )


def _plain(prompt: str | Messages) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)


def _pair(prompt: str, response: str) -> Pair:
    return Pair(before="", context="", after=prompt, response=response, group=prompt, references=(response,))
