"""The tasks ``jsonl`` and ``hub``: any {prompt, response} demonstrations, plain or as the messages of a chat."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlgaf_ray.config.task import RowSettings, TaskSection
from rlgaf_ray.data.chat import ChatTemplate, Message, Messages, as_messages, as_tools
from rlgaf_ray.data.encoder import RESERVED
from rlgaf_ray.data.pair import Pair
from rlgaf_ray.data.pairs import PairSource, PairTask
from rlgaf_ray.data.task import TaskSource
from rlgaf_ray.errors import UserError
from rlgaf_ray.types import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
    rows: list[tuple[str | Messages, str | Message]]  # prompt, response
    tools: list[list[dict[str, Any]] | None]  # of each row's chat
    base: bool  # a part is kept for the base warm-up
    kept: list[Row]  # the whole rows, for reward functions; empty unless asked for
    ends: Collection[int] = ()  # token ids that end a rollout, as far as the model names them

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
        rows: list[tuple[str | Messages, str | Message]] = []
        tools: list[list[dict[str, Any]] | None] = []
        kept: list[Row] = []
        for number, row in enumerate(raw, start=1):
            rows.append(prompt_and_response(row, settings, number))
            chat = not isinstance(rows[-1][0], str)
            own = as_tools(row.get(settings.tools_column), f"task: row {number}") if chat else None
            tools.append(own or settings.tools)
            if keep_rows:
                kept.append({**row, "prompt": rows[-1][0]})
        return cls(task, settings, rows, tools, base, kept)

    @property
    def texts(self) -> list[tuple[str, str]]:
        """Prompt and response of every row, before a chat template."""
        return [(_plain(prompt), _content(response)) for prompt, response in self.rows]

    @property
    def warmup_texts(self) -> Sequence[str]:
        pairs = [_pair(prompt, response) for prompt, response in self.texts]
        return PairSource.split(self.task, self.settings, pairs, base=self.base).warmup_texts

    def with_ends(self, token_ids: Collection[int]) -> RowSource:
        return replace(self, ends=token_ids)

    def tokenized(self, tokenizer: PreTrainedTokenizerBase, cache_folder: Path) -> PairTask:
        """Chats through the tokenizer's template; ``UserError`` naming the row where that is not possible."""
        template = None
        if any(not isinstance(prompt, str) for prompt, _ in self.rows):
            now = datetime.fromisoformat(self.task.date) if self.task.date else datetime.now()
            template = ChatTemplate(tokenizer, self.settings, ends=self.ends, now=now)
        elif self.settings.for_chats:
            raise UserError(f"task: {self.settings.for_chats} is read for chats, and all rows are plain: leave it out")
        pairs: list[Pair] = []
        for row, (prompt, response) in enumerate(self.rows):
            kept = self.kept[row] if self.kept else {}
            if isinstance(prompt, str):
                pairs.append(replace(_pair(prompt, _content(response)), row=kept))
                continue
            assert template is not None
            answer = {"role": "assistant", "content": response} if isinstance(response, str) else response
            pairs += template.pairs([*prompt, answer], self.tools[row], kept, f"task: row {row + 1}")
        source = PairSource.split(self.task, self.settings, pairs, base=self.base)
        rendering = template.key if template else ""
        return replace(source, ends=self.ends, rendering=rendering).tokenized(tokenizer, cache_folder)


def jsonl_source(task: TaskSection, *, base: bool, keep_rows: bool = False) -> RowSource:
    assert task.jsonl.path is not None, "the config refuses jsonl without a path"
    return RowSource.load(task, task.jsonl, read_jsonl(task.jsonl.path), base=base, keep_rows=keep_rows)


def hub_source(task: TaskSection, *, base: bool, keep_rows: bool = False) -> RowSource:
    assert task.hub.dataset is not None, "the config refuses hub without a data set"
    raw = hub_rows(task.hub.dataset, subset=task.hub.subset, split=task.hub.split, key="task.hub.dataset")
    return RowSource.load(task, task.hub, raw, base=base, keep_rows=keep_rows)


def prompt_and_response(
    row: Mapping[str, Any], settings: RowSettings, number: int
) -> tuple[str | Messages, str | Message]:
    """Text, or the messages before the last, and the response. ``UserError`` naming the row."""
    where = f"task: row {number}"
    check_encodable(list(row.values()), where)
    prompt, response = row.get(settings.prompt_column), row.get(settings.response_column)
    if prompt is None and settings.messages_column in row:
        messages = as_messages(row[settings.messages_column])
        if messages is None or len(messages) < 2 or messages[-1]["role"] != "assistant":
            raise UserError(
                f"{where}: {settings.messages_column} must be a list of {{role, content}}, the last of role assistant"
            )
        return messages[:-1], messages[-1]
    if not isinstance(prompt, str):
        prompt = as_messages(prompt) or None
    if prompt is None or not isinstance(response, str):
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
        case str() if not RESERVED.isdisjoint(value):
            raise UserError(f"{where}: a text holds one of U+FDD0 to U+FDD2, which are no characters: remove it")
        case dict():
            check_encodable(list(value.values()), where)
        case list():
            for item in value:
                check_encodable(item, where)


def _plain(prompt: str | Messages) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)


def _content(response: str | Message) -> str:
    return response if isinstance(response, str) else str(response["content"])


def _pair(prompt: str, response: str) -> Pair:
    return Pair(before="", context="", after=prompt, response=response, group=prompt, references=(response,))
