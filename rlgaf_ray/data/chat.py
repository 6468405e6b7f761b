"""Chat templates: render conversations to prompts, and to responses that end with the end-of-turn token."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

from rlgaf_ray.config.rows import RowSettings
from rlgaf_ray.data.cache import content_hash
from rlgaf_ray.data.columns import Message, Messages
from rlgaf_ray.data.encoder import CONTROL, Encoder
from rlgaf_ray.data.pair import Pair, Turn
from rlgaf_ray.errors import UserError
from rlgaf_ray.types import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INSTRUCTING = ("system", "developer")
PROBE = "probe"
REMEDIES = {
    "enable_thinking": "set chat_template_kwargs={enable_thinking: false}",
    "reasoning_content": "give the message its reasoning_content",
}
"""Ways to close a thinking block that the generation prompt opens, by the word of the template that allows each."""


class ChatTemplate:
    """A tokenizer's chat template with the settings of a task.

    Args:
        ends: end-of-text ids from the model's files.
        now: the date that the template sees (``strftime_now``).

    Raises:
        UserError: the tokenizer has no template, or no fast implementation.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, settings: RowSettings, *, ends: Collection[int], now: datetime
    ) -> None:
        if tokenizer.chat_template is None:
            raise UserError(
                "the demonstrations are chats, but the tokenizer has no chat template: use a chat model, "
                "or give plain prompt and response"
            )
        self._tokenizer = tokenizer
        self._settings = settings
        self._ends = set(ends)
        self._encoder = Encoder(tokenizer, ends)
        self._arguments = {"strftime_now": now.strftime, **settings.chat_template_kwargs}
        self._in_parts = self._reads_parts_alone()

    @property
    def key(self) -> str:
        """Hash of the template and its arguments, without the date."""
        arguments = json.dumps(self._settings.chat_template_kwargs, default=str)
        return content_hash([str(self._tokenizer.chat_template), arguments])

    def pairs(self, messages: Messages, tools: list[dict[str, Any]] | None, row: Row, where: str) -> Iterator[Pair]:
        """Yield the last answer, or every answer with ``messages_train: all``, each with the messages before it.

        Raises ``UserError`` that begins with ``where``, the row's location.
        """
        try:
            yield from self._pairs(messages, tools, row, where)
        except RecursionError as error:
            raise UserError(f"{where}: its values are nested too deeply for a chat: flatten them") from error

    def _pairs(self, messages: Messages, tools: list[dict[str, Any]] | None, row: Row, where: str) -> Iterator[Pair]:
        messages = self._instructed(messages)
        answers = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
        answers = [place for place in answers if place > 0]  # an opening assistant message has no prompt
        every = self._settings.messages_train == "all"
        for place in answers if every else answers[-1:]:
            before, answer = messages[:place], messages[place]
            spelled = _spelled_out(before, tools)
            yield Pair(
                before="",
                context="",
                after=spelled,
                response=answer["content"],
                group=_spelled_out(messages[: answers[0]], tools) if every else spelled,
                references=(answer["content"],),
                row={**row, "prompt": before} if row else {},
                turn=self.turn(before, answer, tools, where),
            )

    def prompt(self, messages: Messages, tools: list[dict[str, Any]] | None, where: str) -> str:
        """Return the sealed generation prompt after these messages. Raises ``UserError`` if the template fails."""
        hidden = _mapped(self._instructed(messages), self._encoder.hidden)
        rendered = self._rendered(hidden, _mapped(tools, self._encoder.hidden), where, prompting=True)
        return self._encoder.sealed(rendered)

    def _instructed(self, messages: Messages) -> Messages:
        """Prepend ``system_prompt`` unless the chat begins with a system or developer message."""
        if self._settings.system_prompt is None or messages[0]["role"] in INSTRUCTING:
            return messages
        return [{"role": "system", "content": self._settings.system_prompt}, *messages]

    def turn(self, before: Messages, answer: Message, tools: list[dict[str, Any]] | None, where: str) -> Turn:
        """Render a conversation and its answer.

        Raises ``UserError`` if the template fails, drops a message or a tool, or writes no end-of-turn token.
        """
        hidden = _mapped([*before, answer], self._encoder.hidden)
        tools = _mapped(tools, self._encoder.hidden)
        prompt = self._rendered(hidden[:-1], tools, where, prompting=True)
        whole = self._rendered(hidden, tools, where)
        if not whole.startswith(prompt):
            raise UserError(
                f"{where}: the chat template does not write the answer after its own prompt, which ends with "
                f"{prompt[-40:]!r}: {self._remedies()}"
            )
        if missing := _left_out(hidden, tools, whole, whole[len(prompt) :]):
            raise UserError(
                f"{where}: the chat template leaves out {self._encoder.sealed(missing)}: remove it from the row, or "
                "use a model with another template"
            )
        response = self._encoder.sealed(whole[len(prompt) :])
        if (end := self._end(response)) is None and self._next_turn is not None:
            end = response + self._next_turn
        if end is None:
            raise UserError(
                f"{where}: the chat template writes no token that ends an answer, so that rollouts could not end "
                "where demonstrations do: write {{ eos_token }} after the assistant's content in the template"
            )
        return Turn(self._encoder.sealed(prompt), end)

    def _remedies(self) -> str:
        """Return what helps against a generation prompt that the answer does not follow, in this template."""
        template = str(self._tokenizer.chat_template)
        return ", or ".join(
            [remedy for key, remedy in REMEDIES.items() if key in template]
            + ["edit chat_template in a copy of the model's folder, or give rows of plain prompt and completion"]
        )

    def _end(self, response: str) -> str | None:
        """Return the response up to the token that ends the turn; None if it does not end with a control token.

        Among the trailing control tokens it is the first known end, else the first special token, else the first.
        """
        body = response.rstrip()
        closing: list[re.Match[str]] = []
        for match in reversed(list(CONTROL.finditer(response))):
            if match.end() != len(body):
                break
            closing.insert(0, match)
            body = body[: match.start()].rstrip()
        for wanted in (self._ends, self._encoder.special):
            if found := [match for match in closing if int(match[1]) in wanted]:
                return response[: found[0].end()]
        return response[: closing[0].end()] if closing else None

    @cached_property
    def _next_turn(self) -> str | None:
        """The token that opens the turn after an answer, for templates in which this token ends the answer."""
        user, answer = {"role": "user", "content": PROBE}, {"role": "assistant", "content": f"{PROBE} answer"}
        try:
            rest = self._encoder.sealed(self._render([user, answer, user], None).partition(answer["content"])[2])
        except Exception:  # the template does not accept this conversation
            return None
        opening = CONTROL.match(rest.lstrip())
        return None if opening is None else rest[: len(rest) - len(rest.lstrip())] + opening[0]

    def _rendered(
        self, messages: Messages, tools: list[dict[str, Any]] | None, where: str, *, prompting: bool = False
    ) -> str:
        try:
            return self._render(messages, tools, prompting=prompting)
        except Exception as error:  # a template can raise any exception
            roles = ", ".join(message["role"] for message in messages)
            raise UserError(
                f"{where}: the chat template rejects the conversation ({roles}): {error or type(error).__name__}"
            ) from error

    def _render(
        self, messages: Messages, tools: list[dict[str, Any]] | None, *, prompting: bool = False, parts: bool = False
    ) -> str:
        if parts or self._in_parts:
            messages = [{**item, "content": [{"type": "text", "text": item["content"]}]} for item in messages]
        return str(
            self._tokenizer.apply_chat_template(
                messages,
                tools=list(tools) if tools else None,
                tokenize=False,
                add_generation_prompt=prompting,
                **self._arguments,
            )
        )

    def _reads_parts_alone(self) -> bool:
        """Return whether the template needs content as a list of parts, as those of some vision models do."""
        self._in_parts = False
        asked = [{"role": "user", "content": PROBE}]

        def shows(parts: bool) -> bool:
            try:
                return PROBE in self._render(asked, None, prompting=True, parts=parts)
            except Exception:  # reported later, with the row
                return False

        return not shows(parts=False) and shows(parts=True)


def _left_out(messages: Messages, tools: list[dict[str, Any]] | None, whole: str, response: str) -> str | None:
    """Return the first part of a conversation that its rendering ``whole``, which ends with the response, lacks.

    Templates write schemas and arguments in their own forms, so of a tool and of a call only the name is looked for.
    """
    for message in messages:
        text, role = message["content"].rpartition("</think>")[2].strip(), message["role"]
        escaped = [json.dumps(text, ensure_ascii=ascii)[1:-1] for ascii in (False, True)] if role == "tool" else []
        if role in ("user", "assistant", "tool", *INSTRUCTING) and not any(each in whole for each in (text, *escaped)):
            return f"the content of a message of role {role}"
    calls = [_names(message.get("tool_calls")) for message in messages]
    expected = Counter(chain(_names(tools), *calls))
    for name in chain(*calls[::-1]):
        if whole.count(name) < expected[name] or (name in calls[-1] and name not in response):
            return f"a call of the tool {name!r} (tool_calls)"
    return next((f"the tool {name!r} (tools)" for name in expected if name not in whole), None)


def _names(functions: Any) -> list[str]:
    """Return the names in a list of tools or of calls, as OpenAI nests them or without ``function``."""
    if not isinstance(functions, list):
        return []
    inner = [item.get("function", item) if isinstance(item, Mapping) else None for item in functions]
    return [item["name"] for item in inner if isinstance(item, Mapping) and isinstance(item.get("name"), str)]


def _spelled_out(messages: Sequence[Message], tools: list[dict[str, Any]] | None) -> str:
    """Return a conversation as JSON, independent of the tokenizer."""
    return json.dumps([messages, tools] if tools else messages, ensure_ascii=False, default=str)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    match value:
        case str():
            return change(value)
        case Mapping():
            return {key: _mapped(item, change) for key, item in value.items()}
        case list() | tuple():
            return [_mapped(item, change) for item in value]
        case _:
            return value
