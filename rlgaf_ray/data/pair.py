"""One demonstration of a prompt and a whole response, as text."""

from __future__ import annotations

from dataclasses import dataclass, field

from rlgaf_ray.types import Row


@dataclass(frozen=True, slots=True)
class Pair:
    """One demonstration as text. The prompt is ``before + context + after``, of which only the context is ever cut."""

    before: str
    context: str
    after: str
    response: str
    group: str  # pairs of one group stay in one part
    references: tuple[str, ...]  # what an answer is compared with; none: the right answer is to give none
    kept_span: tuple[int, int] | None = None  # characters of the context that a cut must keep
    row: Row = field(default_factory=dict, repr=False, compare=False)  # no part of the checksum
    turn: Turn | None = field(default=None, repr=False, compare=False)  # as rendered by a chat template
    rejected: Pair | None = field(default=None, repr=False)  # an unwanted answer, as a rule to the same prompt


@dataclass(frozen=True, slots=True)
class Turn:
    """An answer of a chat: sealed texts (``encoder.Encoder``) of the prompt and of what follows, with its end."""

    prompt: str
    response: str
