"""Prompt-response tasks: parts, tokens, and contrast from rejected answers or answers to other prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from rlgaf_ray.config.rows import PairSettings
from rlgaf_ray.config.task import TaskSection
from rlgaf_ray.data.cache import content_hash
from rlgaf_ray.data.contrast import SAME, contrast_rows
from rlgaf_ray.data.counts import RowCounts
from rlgaf_ray.data.encoder import Encoder
from rlgaf_ray.data.extra_rows import Extra, TokenizedExtra
from rlgaf_ray.data.pair import Pair
from rlgaf_ray.data.pair_tokens import spelled_controls, tokenize_pairs
from rlgaf_ray.data.parts import shared_groups, split_by_group
from rlgaf_ray.data.splits import drawn_rows
from rlgaf_ray.data.task import Task, TaskSource, text_blocks
from rlgaf_ray.errors import UserError
from rlgaf_ray.types import EVALUATION_PARTS, Demonstration, EvaluationPart, Rollout, TextBlocks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PARTS = ("base", "demonstrations", *EVALUATION_PARTS)
FORMAT = "pairs 2"  # cache key; increase when the tokenisation of the same rows changes


@dataclass(frozen=True, slots=True)
class PairSource(TaskSource):
    """Pairs split into parts; a group is never divided."""

    task: TaskSection
    settings: PairSettings
    parts: dict[str, list[Pair]]
    no_answer: str | None = None
    own: tuple[str, ...] = ()  # parts that were not split from the common rows
    remarks: Mapping[str, int] = field(default_factory=dict)
    ends: Collection[int] = ()  # end-of-text ids from the model's files
    rendering: str = ""  # the chat template's key (``ChatTemplate.key``)
    extra: Extra = field(default_factory=Extra)

    @classmethod
    def split(
        cls,
        task: TaskSection,
        settings: PairSettings,
        pairs: Sequence[Pair],
        *,
        base: bool,
        no_answer: str | None = None,
        own: Mapping[str, Sequence[Pair]] | None = None,
        remarks: Mapping[str, int] | None = None,
    ) -> PairSource:
        """Split ``pairs`` into parts by group.

        Args:
            base: keep a part for the base warm-up; if False its share goes to the demonstrations.
            no_answer: the response to an unanswerable question, if the data have such questions.
            own: rows of parts that are given separately; the other parts are split from ``pairs``.
            remarks: ``RowCounts.remarks`` on the rows.

        Raises ``UserError`` if there are too few groups.
        """
        own = own or {}
        shares = settings.shares.model_dump()
        if not base:
            shares["demonstrations"] += shares.pop("base")
        shares = {name: share for name, share in shares.items() if name not in own}
        parts: dict[str, list[Pair]] = {"base": []} | split_by_group(pairs, shares, max_rows=settings.max_rows)
        parts |= {name: list(rows) for name, rows in own.items()}
        return cls(task, settings, parts, no_answer, tuple(own), {**(remarks or {}), **shared_groups(pairs, own)})

    @property
    def warmup_texts(self) -> Sequence[str]:
        """Texts for training a tokenizer, with each context once."""
        pairs = self.parts["base"]
        return [
            *dict.fromkeys(pair.context for pair in pairs),
            *(pair.after + pair.response for pair in pairs),
            *self.extra.texts,
        ]

    def tokenized(self, tokenizer: PreTrainedTokenizerBase, cache_folder: Path) -> PairTask:
        """Tokenise all parts and drop pairs that are too long.

        Raises ``UserError`` if all pairs of a part, or more than ``task.max_dropped_share`` of the rows, are dropped.
        """
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer names no end-of-text token: set eos_token in its tokenizer_config.json")
        encoder = Encoder(tokenizer, self.ends)
        kept: dict[str, list[Pair]] = {}
        demonstrations: dict[str, list[Demonstration]] = {}
        dropped: dict[str, Counter[str]] = {}
        for name in PARTS:
            items = tokenize_pairs(self.parts[name], encoder, self.task, end_of_text=tokenizer.eos_token_id)
            dropped[name] = Counter(item for item in items if isinstance(item, str))
            kept[name] = [
                pair for pair, item in zip(self.parts[name], items, strict=True) if isinstance(item, Demonstration)
            ]
            demonstrations[name] = [item for item in items if isinstance(item, Demonstration)]
            if items and not kept[name]:
                raise UserError(
                    f"none of the {len(items)} pairs of the part {name} fits "
                    f"task.prompt_tokens={self.task.prompt_tokens} and "
                    f"task.response_tokens={self.task.response_tokens}: raise these"
                )
        extra = self.extra.tokenized(
            encoder,
            self.task,
            end_of_text=tokenizer.eos_token_id,
            evaluated=[item for part in EVALUATION_PARTS for item in demonstrations[part]],
        )
        rejected = {
            name: self._rejected(kept[name], demonstrations[name], encoder, tokenizer.eos_token_id)
            for name in PARTS[:2]
        }
        unread = Counter(reason for items in rejected.values() for reason in items if isinstance(reason, str))
        counts = RowCounts(
            {**{name: len(pairs) for name, pairs in kept.items()}, **extra.used},
            {**dropped, **extra.dropped},
            {**self.remarks, **unread},
            sum(isinstance(item, Demonstration) for item in rejected["demonstrations"]),
        )
        counts.refuse_above(
            self.task.max_dropped_share,
            [[name for name in PARTS if name not in self.own], *([name] for name in (*self.own, *extra.used))],
        )
        ends = {int(item.response_ids[-1]) for items in demonstrations.values() for item in items} | {*self.ends}
        return PairTask(
            self.task,
            self.settings,
            kept,
            demonstrations,
            rejected,
            end_of_text=tokenizer.eos_token_id,
            no_answer=self.no_answer,
            counts=counts,
            rendering=self.rendering,
            notes=spelled_controls(encoder, kept),
            shown_ends=[each for each in ends if tokenizer.decode([each], skip_special_tokens=True)],
            extra=extra,
        )

    def with_ends(self, token_ids: Collection[int]) -> PairSource:
        return replace(self, ends=token_ids)

    def _rejected(
        self, pairs: Sequence[Pair], items: Sequence[Demonstration], encoder: Encoder, end_of_text: int
    ) -> list[Demonstration | str | None]:
        """Return each pair's rejected answer, the reason why it is dropped, or None if the pair has none."""
        rows = [row for row, pair in enumerate(pairs) if pair.rejected is not None]
        given = [pair.rejected for pair in pairs if pair.rejected is not None]
        answers = tokenize_pairs(given, encoder, self.task, end_of_text=end_of_text)
        found: list[Demonstration | str | None] = [None] * len(pairs)
        for row, answer in zip(rows, answers, strict=True):
            if isinstance(answer, str):
                found[row] = f"rejected answers {answer}, left out"
            else:
                same = answer.response_ids.tobytes() == items[row].response_ids.tobytes()
                found[row] = SAME if same else answer
        return found


class PairTask(Task):
    """Prompts of different lengths, and responses that end with end of text.

    ``contrast`` has each demonstration's rejected answer, or, for rows without one, the response to another prompt,
    from the same group if possible. A discriminator that reads only responses cannot detect such mismatches (Reed et
    al. 2016, arXiv 1605.05396, section 4.2, "matching-aware").
    """

    measure: ClassVar[str] = "answers"

    def __init__(
        self,
        task: TaskSection,
        settings: PairSettings,
        pairs: dict[str, list[Pair]],
        demonstrations: dict[str, list[Demonstration]],
        rejected: dict[str, list[Demonstration | str | None]],
        *,
        end_of_text: int,
        counts: RowCounts,
        no_answer: str | None = None,
        rendering: str = "",
        notes: Sequence[str] = (),
        shown_ends: Collection[int] = (),
        extra: TokenizedExtra | None = None,
    ) -> None:
        self._counts = counts
        self.no_answer = no_answer
        self.notes = notes
        self.end_ids = frozenset(int(item.response_ids[-1]) for items in demonstrations.values() for item in items)
        self._rendering = rendering
        self._shown_ends = frozenset(shown_ends)  # end tokens that decoding with skip_special_tokens keeps
        self._task = task
        self._settings = settings
        self._pairs = pairs
        self._parts = demonstrations
        self._rejected = rejected
        self._end_of_text = end_of_text
        self._base = "base" if demonstrations["base"] else "demonstrations"
        self._extra = extra or TokenizedExtra()
        rows = drawn_rows(len(demonstrations["demonstrations"]), task)
        self.demonstrations = [demonstrations["demonstrations"][row] for row in rows]
        self.rows = [pairs["demonstrations"][row].row for row in rows] + [pair.row for pair in self._extra.prompts]
        self.contrast = self._contrast("demonstrations", rows)

    def evaluation(self, part: EvaluationPart) -> list[Demonstration]:
        return self._parts[part]

    def evaluated_ids(self, item: Demonstration | Rollout) -> np.ndarray:
        """Return the response without an end token that decoding would show as text."""
        ids = item.response_ids
        return ids[:-1] if len(ids) and int(ids[-1]) in self._shown_ends else ids

    def evaluation_pairs(self, part: EvaluationPart) -> list[Pair]:
        """Return the pairs of ``evaluation`` as text, with their contexts and references."""
        return self._pairs[part]

    @property
    def checksum(self) -> str:
        rows = [(name, pair) for name in PARTS for pair in self._pairs[name]]
        rejected = [("rejected", pair.rejected) for _, pair in rows if pair.rejected is not None]
        return content_hash(f"{name} {pair}" for name, pair in (*rows, *rejected, *self._extra.described))

    @property
    def prompts(self) -> Sequence[np.ndarray]:
        return self._extra.prompt_ids

    @property
    def chats(self) -> bool:
        return bool(self._rendering)

    @property
    def counts(self) -> RowCounts:
        return self._counts

    @property
    def unwanted(self) -> str:
        has_rejected = {item is not None for item in self._rejected["demonstrations"]}
        names = {True: "rejected answers", False: "answers to other prompts"}
        return " and ".join(name for kind, name in names.items() if kind in has_rejected)

    @property
    def base_key(self) -> Sequence[str]:
        lengths = str(self._task.prompt_tokens), str(self._task.response_tokens)
        return FORMAT, *lengths, self._settings.warmup_loss, self._rendering

    @property
    def max_tokens(self) -> int:
        return self._task.prompt_tokens + self._task.response_tokens

    def warmup_blocks(self, block_tokens: int) -> TextBlocks:
        """Return one pair per row, [N, ``max_tokens``], followed by rows of plain text; ``warmup_loss`` sets the loss.

        The pairs are those of part ``base``, or the demonstrations if the task has no rows for the base warm-up.
        """
        texts = self._extra.text_rows
        part = "base" if texts else self._base
        blocks = text_blocks(
            self._parts[part],
            num_tokens=self.max_tokens,
            pad_token_id=self._end_of_text,
            prompts_learned=self._settings.warmup_loss == "all",
        )
        if not texts:
            return blocks
        return TextBlocks(
            np.concatenate([blocks.token_ids, texts.token_ids]), np.concatenate([blocks.learned, texts.learned])
        )

    def discriminator_warmup(self) -> tuple[list[Demonstration], np.ndarray]:
        """Return the pairs of part ``base``, or the demonstrations if it is empty, then their contrast, and labels."""
        real = self._parts[self._base]
        wrong = self._contrast(self._base, range(len(real)))
        return real + wrong, np.repeat(np.array([1, 0], np.int64), [len(real), len(wrong)])

    def _contrast(self, part: str, rows: Sequence[int]) -> list[Demonstration]:
        return contrast_rows(
            [self._pairs[part][row].group for row in rows],
            [self._parts[part][row] for row in rows],
            [self._rejected[part][row] for row in rows],
        )
