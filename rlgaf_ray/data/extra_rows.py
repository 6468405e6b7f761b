"""Additional rows: prompts without answers for rollouts, and texts for the base warm-up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rlgaf_ray.config.rows import RowSettings
from rlgaf_ray.config.task import TaskSection
from rlgaf_ray.data.columns import (
    CHOSEN,
    CONVERSATIONS,
    PROMPT,
    QUESTION,
    Example,
    as_messages,
    as_tools,
    check_encodable,
    read_example,
    text_or_messages,
)
from rlgaf_ray.data.encoder import Encoder
from rlgaf_ray.data.pair import Pair
from rlgaf_ray.data.pair_tokens import tokenize_pairs
from rlgaf_ray.errors import UserError
from rlgaf_ray.types import Demonstration, TextBlocks

TEXT = "text"
PROMPTS = "prompts"  # their name among the parts in ``RowCounts``
EVALUATED = "that are prompts of the evaluation"


def read_prompt(row: Mapping[str, Any], settings: RowSettings, place: str) -> Example:
    """Parse a prompt, as an example with an empty response; trailing answers of a conversation are ignored.

    Raises ``UserError`` naming the place if the row has no prompt.
    """
    check_encodable(list(row.values()), place)
    named = (settings.prompt_column, settings.messages_column, PROMPT, QUESTION, *CONVERSATIONS)
    names = [name for name in dict.fromkeys(named) if name]
    name = next((name for name in names if row.get(name) is not None), None)
    if name is None:
        raise UserError(f"{place} has no prompt: name its column by prompt_column, or call it {' or '.join(names)}")
    if name not in CONVERSATIONS and name != settings.messages_column:
        prompt = text_or_messages(row[name], name, place)
    else:
        prompt = as_messages(row[name], name, place)
    if isinstance(prompt, str):
        return Example(prompt, "", place=place)
    while prompt and prompt[-1]["role"] == "assistant":
        prompt = prompt[:-1]
    if not prompt:
        raise UserError(f"{place}: {name} has only assistant messages: add a message of another role before them")
    return Example(prompt, "", place=place, tools=as_tools(row.get(settings.tools_column), place))


def read_base_row(row: Mapping[str, Any], settings: RowSettings, place: str) -> Example | str:
    """Parse a row of the base warm-up: its ``text`` if it has no prompt or conversation, else a demonstration."""
    named = (settings.prompt_column, settings.messages_column, PROMPT, QUESTION, CHOSEN, *CONVERSATIONS)
    text = row.get(TEXT)
    if not isinstance(text, str) or any(row.get(name) is not None for name in named if name):
        return read_example(row, settings, place)
    check_encodable(text, place)
    return text


@dataclass(frozen=True, slots=True)
class TokenizedExtra:
    prompts: Sequence[Pair] = ()
    prompt_ids: Sequence[np.ndarray] = ()  # int32, in the order of ``prompts``
    texts: Sequence[str] = ()
    text_rows: TextBlocks | None = None
    used: Mapping[str, int] = field(default_factory=dict)  # as in ``RowCounts``, like ``dropped``
    dropped: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def described(self) -> list[tuple[str, object]]:
        """The rows that enter the task's checksum."""
        return [*(("prompt", pair) for pair in self.prompts), *(("text", text) for text in self.texts)]


@dataclass(frozen=True, slots=True)
class Extra:
    prompts: Sequence[Pair] = ()  # with an empty response
    texts: Sequence[str] = ()  # for the base warm-up, in addition to its pairs

    def tokenized(
        self, encoder: Encoder, task: TaskSection, *, end_of_text: int, evaluated: Sequence[Demonstration]
    ) -> TokenizedExtra:
        """Tokenise texts and prompts, and drop prompts of ``evaluated``. Raises ``UserError`` if all are dropped."""
        length = task.prompt_tokens + task.response_tokens
        text_rows = packed_texts(self.texts, encoder, num_tokens=length, end_of_text=end_of_text)
        if not self.prompts:
            return TokenizedExtra(texts=self.texts, text_rows=text_rows)
        known = {item.prompt_ids.tobytes() for item in evaluated}
        items = tokenize_pairs(self.prompts, encoder, task, end_of_text=end_of_text)
        found: list[tuple[Pair, np.ndarray]] = []
        reasons = Counter[str]()
        for pair, item in zip(self.prompts, items, strict=True):
            if isinstance(item, str):
                reasons[item] += 1
            elif item.prompt_ids.tobytes() in known:
                reasons[EVALUATED] += 1
            else:
                found.append((pair, item.prompt_ids))
        if not found:
            named = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
            raise UserError(
                f"task.{task.name}.prompts: all {len(items):,} are left out: {named}; raise task.prompt_tokens, or "
                "give others"
            )
        return TokenizedExtra(
            [pair for pair, _ in found],
            [ids for _, ids in found],
            self.texts,
            text_rows,
            {PROMPTS: len(found)},
            {PROMPTS: reasons},
        )


def packed_texts(texts: Sequence[str], encoder: Encoder, *, num_tokens: int, end_of_text: int) -> TextBlocks:
    """Split each text, with end of text, into rows of ``num_tokens``; the last row of a text is padded.

    The first token of a row has no loss. Rows of one token are dropped.
    """
    rows: list[np.ndarray] = []
    for ids in encoder(texts) if texts else []:
        sequence = np.array([*encoder.bos, *ids, end_of_text], np.int32)
        rows += [sequence[start : start + num_tokens] for start in range(0, len(sequence), num_tokens)]
    rows = [row for row in rows if len(row) > 1]
    token_ids = np.full((len(rows), num_tokens), end_of_text, np.int32)
    learned = np.zeros(token_ids.shape, bool)
    for number, row in enumerate(rows):
        token_ids[number, : len(row)] = row
        learned[number, 1 : len(row)] = True
    return TextBlocks(token_ids, learned)
