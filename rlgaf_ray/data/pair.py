"""A demonstration as text: prompt, response and what belongs to them."""

from __future__ import annotations

from dataclasses import dataclass, field

from rlgaf_ray.types import Row


@dataclass(frozen=True, slots=True)
class Pair:
    """A demonstration as text. The prompt is ``before + context + after``; only the context may be truncated."""

    before: str
    context: str
    after: str
    response: str
    group: str  # pairs of one group stay in one part
    references: tuple[str, ...]  # reference answers for metrics; empty if the question has no answer
    kept_span: tuple[int, int] | None = None  # characters of the context that truncation keeps if they fit
    row: Row = field(default_factory=dict, repr=False, compare=False)  # columns for reward functions; not in checksums
    turn: Turn | None = field(default=None, repr=False, compare=False)  # prompt and response by a chat template
    rejected: Pair | None = field(default=None, repr=False)  # the rejected answer, usually to the same prompt


@dataclass(frozen=True, slots=True)
class Turn:
    """An answer of a chat as sealed texts (``Encoder.sealed``): the prompt, and the response with its end token."""

    prompt: str
    response: str
