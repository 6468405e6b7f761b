"""Tokenise pairs consistently with the joined text, and truncate contexts that are too long."""

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
    """Return the token ids of each pair, or the reason why it is dropped: too long, or without a prompt.

    A plain prompt begins with the tokenizer's BOS, if any, and its response ends with ``end_of_text``. For a chat the
    template has written both.
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
    """Tokenise like ``tokenize_pairs``, with contexts truncated to ``task.prompt_tokens``."""
    if not pairs:
        return []
    texts = list(dict.fromkeys(pair.context for pair in pairs))  # questions share contexts
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
        budget = task.prompt_tokens - len(first) - count
        ids, offsets = contexts[pair.context]
        window = cut(offsets, pair.kept_span, max_tokens=max(budget, 0))
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
    """Return a note if plain texts spell control tokens, as texts do that already went through a chat template."""
    plain = [pair for pairs in parts.values() for pair in pairs if pair.turn is None]
    count = sum(encoder.spells_control(pair.before + pair.context + pair.after + pair.response) for pair in plain)
    if count == 0:
        return []
    return [
        f"{count:,} of {len(plain):,} plain rows spell control tokens of the tokenizer, which are read as text: give "
        "messages where they are meant as a chat"
    ]


def cut(offsets: Sequence[tuple[int, int]], kept_span: tuple[int, int] | None, *, max_tokens: int) -> slice:
    """Return a window of at most ``max_tokens`` tokens, with ``kept_span`` near its middle if possible.

    ``offsets`` are the tokens' character ranges (start, end). Without a span, or with one outside the text, the window
    is the beginning. If the span is longer than the window, the window starts with it.
    """
    if len(offsets) <= max_tokens or kept_span is None:
        return slice(0, max_tokens)
    begin, end = kept_span
    kept = [row for row, (left, right) in enumerate(offsets) if right > begin and left < end]
    if not kept:
        return slice(0, max_tokens)
    spare = max(0, max_tokens - len(kept))
    first = min(max(0, kept[0] - spare // 2), len(offsets) - max_tokens)
    return slice(first, first + max_tokens)
