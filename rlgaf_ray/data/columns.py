"""Parse rows of the usual dataset formats into demonstrations, plain or chat, with an optional rejected answer.

The columns are TRL's: ``prompt`` with ``completion``, ``chosen`` with ``rejected`` (which may include the prompt), or
``messages``; also ``prompt`` with ``response``, ``question`` with ``answer``, and ``conversations``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from rlgaf_ray.config.rows import RowSettings
from rlgaf_ray.data.encoder import RESERVED
from rlgaf_ray.data.formats import without_nulls
from rlgaf_ray.errors import UserError

Message = dict[str, Any]
Messages = list[Message]

PROMPT, CHOSEN, REJECTED = "prompt", "chosen", "rejected"
COMPLETION = "completion"  # also in TRL's unpaired preferences, where ``label`` marks desired completions
RESPONSES = ("response", COMPLETION, CHOSEN)
QUESTION, ANSWER = "question", "answer"
CONVERSATIONS = ("messages", "conversations")
SPEAKERS = {"human": "user", "gpt": "assistant"}  # ShareGPT's {from, value}; other names are used as roles unchanged
TURN = "\n\nAssistant:"  # as in Anthropic/hh-rlhf
SERIALISED = re.compile(r"\s*\[\s*\{\s*['\"](?:role|content|from|value)['\"]\s*:")


@dataclass(frozen=True, slots=True)
class Example:
    """A demonstration before the chat template is applied. In a chat the response is the last message."""

    prompt: str | Messages
    response: str | Message
    rejected: Example | None = None  # the rejected answer, usually to the same prompt
    place: str = ""  # the row's location, for errors
    tools: list[dict[str, Any]] | None = None  # passed to the chat template

    @property
    def answer(self) -> str:
        """The response's text."""
        return self.response if isinstance(self.response, str) else str(self.response["content"])

    @property
    def plain_prompt(self) -> str:
        """The prompt's text without a template."""
        if isinstance(self.prompt, str):
            return self.prompt
        return "\n".join(str(message["content"]) for message in self.prompt)


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns to read: ``messages``, or ``prompt`` and ``response``."""

    prompt: str | None = None
    response: str | None = None
    messages: str | None = None


def read_example(row: Mapping[str, Any], settings: RowSettings, place: str) -> Example:
    """Parse a row into a demonstration. Raises ``UserError`` naming the place if it is not one."""
    example = _read_example(row, settings, place)
    if isinstance(example.prompt, str) or (tools := as_tools(row.get(settings.tools_column), place)) is None:
        return example
    return replace(
        example, tools=tools, rejected=None if example.rejected is None else replace(example.rejected, tools=tools)
    )


def _read_example(row: Mapping[str, Any], settings: RowSettings, place: str) -> Example:
    check_encodable(list(row.values()), place)
    columns = find_columns(row, settings, place)
    if columns.messages is not None:
        return _example(None, as_messages(row[columns.messages], columns.messages, place), place, columns.messages)
    assert columns.response is not None, "find_columns refuses rows without a response"
    if columns.response == COMPLETION != settings.response_column and str(row.get("label")).lower() == "false":
        raise UserError(f"{place}: its label is false, so its completion is not a demonstration: remove such rows")
    response = text_or_messages(row[columns.response], columns.response, place)
    prompt = None if columns.prompt is None else row.get(columns.prompt)
    if prompt is not None:
        prompt = text_or_messages(prompt, str(columns.prompt), place)
    rejected_name = settings.rejected_column or REJECTED
    rejected = row.get(rejected_name)
    if rejected is None:
        return _example(prompt, response, place, columns.response)
    rejected = text_or_messages(rejected, rejected_name, place)
    if isinstance(rejected, str) != isinstance(response, str):
        raise UserError(
            f"{place}: one of {columns.response} and {rejected_name} is text, the other messages: use one format"
        )
    if prompt is None and isinstance(response, str) and isinstance(rejected, str):
        prompt = common_beginning(response, rejected) if response != rejected else ""
        if not prompt:
            raise UserError(
                f"{place} has no prompt, and its {columns.response} and {rejected_name} share no prefix that could be "
                "the prompt: add a column prompt"
            )
        response, rejected = response[len(prompt) :], rejected[len(prompt) :]
    other = _example(prompt, rejected, place, rejected_name)
    wanted = _example(prompt, response, place, columns.response)
    return replace(wanted, rejected=other)


def find_columns(row: Mapping[str, Any], settings: RowSettings, place: str) -> Columns:
    """Return the columns named in the settings, else the usual ones. A column whose value is null counts as absent.

    Raises ``UserError`` if none or more than one candidate matches.
    """
    there = {name for name, value in row.items() if value is not None}
    prompt = settings.prompt_column or next((name for name in (PROMPT, QUESTION) if name in there), PROMPT)
    pairs = [
        Columns(prompt if prompt in there else None, name)
        for name in ([settings.response_column] if settings.response_column else RESPONSES)
        if name in there and (prompt in there or isinstance(row[name], list) or REJECTED in there)
    ]
    names = [settings.messages_column] if settings.messages_column else CONVERSATIONS
    chats = [Columns(messages=name) for name in names if name in there]
    if not (pairs or chats or settings.response_column) and {prompt, ANSWER} <= there and prompt != PROMPT:
        pairs = [Columns(prompt, ANSWER)]
    if settings.prompt_column or settings.response_column:
        found = pairs or (chats if settings.messages_column else [])
    elif settings.messages_column:
        found = chats
    elif {CHOSEN, REJECTED} <= there:  # a messages column beside them repeats the chosen conversation
        found = pairs
    else:
        found = [*pairs, *chats]
    if len(found) == 1:
        return found[0]
    if found:
        several = " and ".join(str(columns.response or columns.messages) for columns in found)
        raise UserError(f"{place} has {several}: name the one to read by response_column or messages_column")
    responses = settings.response_column or ", ".join(RESPONSES)
    raise UserError(
        f"{place} has no {settings.prompt_column or PROMPT} with a {responses}, and no "
        f"{settings.messages_column or CONVERSATIONS[0]} (it has {_short(', '.join(sorted(there))) or 'nothing'}): "
        "name its columns by prompt_column and response_column, or by messages_column"
    )


def common_beginning(first: str, second: str) -> str:
    """Return the common prompt of two texts: up to the assistant's last turn, else up to the first differing word."""
    shared = first[: sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))]
    if TURN in shared:
        return shared[: shared.rindex(TURN) + len(TURN)]
    end = len(shared)
    while end and not shared[end - 1].isspace():
        end -= 1
    return shared[:end].rstrip()


def as_messages(value: Any, name: str, place: str) -> Messages:
    """Parse a list of messages, or its JSON. Null keys are dropped; {from, value} becomes {role, content}.

    Raises ``UserError`` naming the place for anything else.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise UserError(f"{place}: {name} is text, not a list of messages: write it as JSON") from None
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        raise UserError(f"{place}: {name} must be a list of {{role, content}}, but is {_short(value)}")
    return [_message(item, name, place) for item in value]


def _message(item: Mapping[str, Any], name: str, place: str) -> Message:
    message = {key: value for key, value in item.items() if value is not None}
    if message.get("tool_calls"):  # such a message may have no content
        message.setdefault("content", "")
    if isinstance(content := message.get("content"), list):
        message["content"] = _joined(content)
    if "from" in message and "role" not in message:
        speaker = message.pop("from")
        message = {"role": SPEAKERS.get(str(speaker), speaker), "content": message.pop("value", None), **message}
    for key in ("role", "content"):
        if not isinstance(message.get(key), str):
            raise UserError(f"{place}: {name} must be a list of {{role, content}}: {key} is {_short(message.get(key))}")
    return message


def as_tools(value: Any, place: str) -> list[dict[str, Any]] | None:
    """Parse JSON schemas of tools, a list or its JSON, and drop the nulls that Parquet adds; None if empty.

    Raises ``UserError`` naming the place for anything else.
    """
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place}: the tools (tools_column) are not valid JSON: {error}") from error
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise UserError(f"{place}: the tools (tools_column) must be a list of JSON schemas, or its JSON as text")
    return without_nulls(value)


def _joined(content: list[Any]) -> Any:
    """Join content given as a list of ``{type: text, text: ...}``; return any other content unchanged."""
    parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    whole = content and len(parts) == len(content) and all(isinstance(part, str) for part in parts)
    return "".join(map(str, parts)) if whole else content


def text_or_messages(value: Any, name: str, place: str) -> str | Messages:
    """Return text unchanged and parse a list as messages. Raises ``UserError`` naming the place for anything else."""
    match value:
        case list():
            return as_messages(value, name, place)
        case str() if SERIALISED.match(value):
            raise UserError(
                f"{place}: {name} is a list of messages that was written as text: write it as a list, in JSON Lines or "
                "Parquet"
            )
        case str():
            return value
    raise UserError(f"{place}: {name} is {_short(value)} ({type(value).__name__}): write text or a list of messages")


def _example(prompt: str | Messages | None, answer: str | Messages, place: str, name: str) -> Example:
    """Build an example. A conversation in ``answer`` may repeat the prompt, as preference data often do."""
    if isinstance(answer, str):
        if prompt is None:
            raise UserError(f"{place}: {name} is text, but there is no prompt: add a column prompt")
        return Example(
            prompt, answer if isinstance(prompt, str) else {"role": "assistant", "content": answer}, place=place
        )
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}] if answer[0]["role"] == "assistant" else []
    prompt = prompt or []
    conversation = answer if answer[: len(prompt)] == prompt else [*prompt, *answer]
    if len(conversation) < 2 or conversation[-1]["role"] != "assistant":
        raise UserError(
            f"{place}: {name} must be a list of {{role, content}}, the last of role assistant, after a prompt"
        )
    return Example(conversation[:-1], conversation[-1], place=place)


def check_encodable(value: Any, place: str) -> None:
    """Raise ``UserError`` for text with lone surrogates, which no tokenizer can encode, or reserved characters."""
    pending = [value]  # iterative: a row may be nested deeper than Python's recursion limit
    while pending:
        match pending.pop():
            case str() as text if any("\ud800" <= character <= "\udfff" for character in text):
                raise UserError(f"{place}: a text contains a lone surrogate, invalid in UTF-8: re-encode it")
            case str() as text if not RESERVED.isdisjoint(text):
                raise UserError(f"{place}: a text contains one of the noncharacters U+FDD0 to U+FDD2: remove it")
            case dict() as row:
                pending += [*row, *row.values()]
            case list() as items:
                pending += items


def _short(value: object) -> str:
    try:
        text = " ".join(str(value).split()).encode(errors="replace").decode()
    except RecursionError:
        return "nested too deeply"
    return text if len(text) <= 80 else text[:77] + "..."
