"""Pairs as token ids, which equal those of the joined text, with a context that is cut where it is too long."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlgaf_ray.config.task import TaskSection
from rlgaf_ray.data.encoder import Encoder
from rlgaf_ray.data.pair import Pair
from rlgaf_ray.types import Demonstration


def tokenize_pairs(
    pairs: Sequence[Pair], encoder: Encoder, task: TaskSection, *, end_of_text: int
) -> list[Demonstration | str]:
    """Token ids of each pair, or the reason why it is left out: a part that is too long, or no prompt.

    A plain prompt begins with what the tokenizer puts first by itself (BOS), and its response ends with
    ``end_of_text``. The template has written both for a chat.
    """
    if not pairs:
        return []
    prompts = [pair.turn.prompt if pair.turn else pair.before + pair.context + pair.after for pair in pairs]
    rests = [pair.turn.response if pair.turn else pair.response for pair in pairs]
    items: list[Demonstration | str] = []
    for row, (prompt, response) in enumerate(encoder.joined(prompts, rests)):
        if pairs[row].turn is None:
            prompt, response = [*encoder.bos, *prompt], [*response, end_of_text]
        items.append(_demonstration(prompt, response, task))
    long = [row for row, item in enumerate(items) if isinstance(item, str) and pairs[row].context]
    for row, item in zip(
        long, _with_cut_contexts([pairs[row] for row in long], encoder, task, end_of_text), strict=True
    ):
        items[row] = item
    return items


def _with_cut_contexts(
    pairs: Sequence[Pair], encoder: Encoder, task: TaskSection, end_of_text: int
) -> list[Demonstration | str]:
    """As ``tokenize_pairs``, with no more of each context than fits."""
    if not pairs:
        return []
    texts = list(dict.fromkeys(pair.context for pair in pairs))  # questions share them
    contexts = dict(zip(texts, encoder.with_offsets(texts), strict=True))
    before = dict(zip(names := sorted({pair.before for pair in pairs}), encoder(names), strict=True))
    after = encoder.continued([pair.after for pair in pairs])
    both = encoder.continued([pair.after + pair.response for pair in pairs])
    alone = encoder.continued([pair.response for pair in pairs])
    items: list[Demonstration | str] = []
    for row, pair in enumerate(pairs):
        count = len(after[row])
        joined = both[row][:count] == after[row]
        response = [*(both[row][count:] if joined else alone[row]), end_of_text]
        first = [*encoder.bos, *before[pair.before]]
        room = task.prompt_tokens - len(first) - count
        ids, offsets = contexts[pair.context]
        window = cut(offsets, pair.kept_span, max_tokens=max(room, 0))
        prompt = [*first, *ids[window], *after[row]]
        items.append(_demonstration(prompt, response, task))
    return items


def _demonstration(prompt: Sequence[int], response: Sequence[int], task: TaskSection) -> Demonstration | str:
    if len(response) > task.response_tokens:
        return f"with a response longer than task.response_tokens={task.response_tokens}"
    if len(prompt) > task.prompt_tokens:
        return f"with a prompt longer than task.prompt_tokens={task.prompt_tokens}"
    if not prompt:
        return "without a prompt"
    return Demonstration(np.array(prompt, np.int32), np.array(response, np.int32))


def spelled_controls(encoder: Encoder, parts: dict[str, list[Pair]]) -> list[str]:
    """A sentence where plain texts spell control tokens, as those do that a chat template was applied to already."""
    plain = [pair for pairs in parts.values() for pair in pairs if pair.turn is None]
    count = sum(encoder.spells_control(pair.before + pair.context + pair.after + pair.response) for pair in plain)
    if count == 0:
        return []
    return [
        f"{count:,} of {len(plain):,} plain rows spell control tokens of the tokenizer, which are read as text: give "
        "messages where they are meant as a chat"
    ]


def cut(offsets: Sequence[tuple[int, int]], kept_span: tuple[int, int] | None, *, max_tokens: int) -> slice:
    """At most ``max_tokens`` of a text's tokens, with the characters to keep near their middle where that is possible.

    ``offsets`` are the tokens' first and last characters. Without a span, or with one outside of the text, the
    beginning is kept; where the span alone is longer than the window, the window starts with it.
    """
    if len(offsets) <= max_tokens or kept_span is None:
        return slice(0, max_tokens)
    begin, end = kept_span
    held = [row for row, (left, right) in enumerate(offsets) if right > begin and left < end]
    if not held:
        return slice(0, max_tokens)
    spare = max(0, max_tokens - len(held))
    first = min(max(0, held[0] - spare // 2), len(offsets) - max_tokens)
    return slice(first, first + max_tokens)
