"""Tasks of prompts and whole responses: their parts, their tokens, and answers to other prompts as contrast."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from rlgaf_ray.config.task import PairSettings, TaskSection
from rlgaf_ray.data.cache import content_hash
from rlgaf_ray.data.encoder import Encoder
from rlgaf_ray.data.pair import Pair
from rlgaf_ray.data.pair_tokens import spelled_controls, tokenize_pairs
from rlgaf_ray.data.splits import drawn_rows
from rlgaf_ray.data.task import Task, TaskSource, text_blocks
from rlgaf_ray.errors import UserError
from rlgaf_ray.types import EVALUATION_PARTS, Demonstration, EvaluationPart, Rollout, TextBlocks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Not run.seed: seeds are compared on the same parts.
SPLIT_SEED = 20230601
PARTS = ("base", "demonstrations", *EVALUATION_PARTS)
FORMAT = "pairs 2"  # raise it when the same rows and tokenizer must give other tokens


@dataclass(frozen=True, slots=True)
class PairSource(TaskSource):
    """Pairs dealt out to the parts, by whole groups."""

    task: TaskSection
    settings: PairSettings
    parts: dict[str, list[Pair]]
    no_answer: str | None = None
    ends: Collection[int] = ()  # token ids that end a rollout, as far as the model names them
    rendering: str = ""  # what decides the pairs' turns beside the rows

    @classmethod
    def split(
        cls,
        task: TaskSection,
        settings: PairSettings,
        pairs: Sequence[Pair],
        *,
        base: bool,
        no_answer: str | None = None,
    ) -> PairSource:
        """Without ``base`` nothing is kept for a base warm-up: its share goes to the demonstrations.

        ``no_answer``: the response that says that there is no answer, where there may be none.

        Raises ``UserError`` where the groups are too few for the parts.
        """
        shares = settings.shares.model_dump()
        if not base:
            shares["demonstrations"] += shares.pop("base")
        parts: dict[str, list[Pair]] = {"base": []} | split_by_group(pairs, shares, max_rows=settings.max_rows)
        return cls(task, settings, parts, no_answer)

    @property
    def warmup_texts(self) -> Sequence[str]:
        """Each context once: questions share them."""
        pairs = self.parts["base"]
        return [*dict.fromkeys(pair.context for pair in pairs), *(pair.after + pair.response for pair in pairs)]

    def tokenized(self, tokenizer: PreTrainedTokenizerBase, cache_folder: Path) -> PairTask:
        """Raises ``UserError`` where no pair of a part fits ``task.prompt_tokens`` and ``task.response_tokens``."""
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer names no end-of-text token: set eos_token in its tokenizer_config.json")
        encoder = Encoder(tokenizer, self.ends)
        kept: dict[str, list[Pair]] = {}
        demonstrations: dict[str, list[Demonstration]] = {}
        for name in PARTS:
            items = tokenize_pairs(self.parts[name], encoder, self.task, end_of_text=tokenizer.eos_token_id)
            fitting = [row for row, item in enumerate(items) if item is not None]
            if items and not fitting:
                raise UserError(
                    f"none of the {len(items)} pairs of the part {name} fits "
                    f"task.prompt_tokens={self.task.prompt_tokens} and "
                    f"task.response_tokens={self.task.response_tokens}: raise these"
                )
            kept[name] = [self.parts[name][row] for row in fitting]
            demonstrations[name] = [item for item in items if item is not None]
        ends = {int(item.response_ids[-1]) for items in demonstrations.values() for item in items} | {*self.ends}
        return PairTask(
            self.task,
            self.settings,
            kept,
            demonstrations,
            end_of_text=tokenizer.eos_token_id,
            no_answer=self.no_answer,
            rendering=self.rendering,
            notes=spelled_controls(encoder, kept),
            shown_ends=[each for each in ends if tokenizer.decode([each], skip_special_tokens=True)],
        )

    def with_ends(self, token_ids: Collection[int]) -> PairSource:
        return replace(self, ends=token_ids)


class PairTask(Task):
    """Prompts of many lengths, and responses that end with end-of-text.

    ``contrast`` has, for each demonstration, its prompt with the response of another prompt, of the same group where it
    has one: what a discriminator that looks at responses alone would let pass (Reed et al. 2016, arXiv 1605.05396,
    section 4.2, "matching-aware").
    """

    measure: ClassVar[str] = "answers"

    def __init__(
        self,
        task: TaskSection,
        settings: PairSettings,
        pairs: dict[str, list[Pair]],
        demonstrations: dict[str, list[Demonstration]],
        *,
        end_of_text: int,
        no_answer: str | None = None,
        rendering: str = "",
        notes: Sequence[str] = (),
        shown_ends: Collection[int] = (),
    ) -> None:
        self.no_answer = no_answer
        self.notes = notes
        self.end_ids = frozenset(int(item.response_ids[-1]) for items in demonstrations.values() for item in items)
        self._rendering = rendering
        self._shown_ends = frozenset(shown_ends)  # that the tokenizer does not call special
        self._task = task
        self._settings = settings
        self._pairs = pairs
        self._parts = demonstrations
        self._end_of_text = end_of_text
        self._base = "base" if demonstrations["base"] else "demonstrations"
        rows = drawn_rows(len(demonstrations["demonstrations"]), task)
        self.demonstrations = [demonstrations["demonstrations"][row] for row in rows]
        self.rows = [pairs["demonstrations"][row].row for row in rows]
        self.contrast = mismatched([pairs["demonstrations"][row] for row in rows], self.demonstrations)

    def evaluation(self, part: EvaluationPart) -> list[Demonstration]:
        return self._parts[part]

    def evaluated_ids(self, item: Demonstration | Rollout) -> np.ndarray:
        """The response, without an end that would be read as text."""
        ids = item.response_ids
        return ids[:-1] if len(ids) and int(ids[-1]) in self._shown_ends else ids

    def evaluation_pairs(self, part: EvaluationPart) -> list[Pair]:
        """The same as text, with their contexts and references."""
        return self._pairs[part]

    @property
    def checksum(self) -> str:
        rows = ((name, pair) for name in PARTS for pair in self._pairs[name])
        return content_hash(f"{name} {pair}" for name, pair in rows)

    @property
    def base_key(self) -> Sequence[str]:
        lengths = str(self._task.prompt_tokens), str(self._task.response_tokens)
        return FORMAT, *lengths, self._settings.warmup_loss, self._rendering

    @property
    def max_tokens(self) -> int:
        return self._task.prompt_tokens + self._task.response_tokens

    def warmup_blocks(self, block_tokens: int) -> TextBlocks:
        """One pair a row, as long as the longest prompt and response; what is learned is ``warmup_loss``'s choice.

        Demonstrations where no part is kept for the base warm-up.
        """
        return text_blocks(
            self._parts[self._base],
            num_tokens=self.max_tokens,
            pad_token_id=self._end_of_text,
            prompts_learned=self._settings.warmup_loss == "all",
        )

    def discriminator_warmup(self) -> tuple[list[Demonstration], np.ndarray]:
        """Pairs of part ``base``, or else the demonstrations, and the same prompts with other responses."""
        real = self._parts[self._base]
        wrong = mismatched(self._pairs[self._base], real)
        return real + wrong, np.repeat(np.array([1, 0], np.int64), [len(real), len(wrong)])


def split_by_group(
    pairs: Sequence[Pair], shares: dict[str, float], *, max_rows: int | None = None
) -> dict[str, list[Pair]]:
    """Parts that share no group, so that no context or prompt of one part is known from another.

    Whole groups, in an order drawn by lot (the same in every run), are dealt out until each part has its share of the
    rows, in the order of ``shares``, which are relative to their sum; with ``max_rows`` only the first groups are used.
    Raises ``UserError`` where the groups are too few for a part.
    """
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.group, []).append(pair)
    names = list(groups)
    order = iter(np.random.default_rng(SPLIT_SEED).permutation(len(names)))
    bounds = np.cumsum(list(shares.values())) / sum(shares.values()) * min(len(pairs), max_rows or len(pairs))
    parts: dict[str, list[Pair]] = {}
    count = 0
    for name, bound in zip(shares, bounds, strict=True):
        parts[name] = []
        while count + 1e-6 < bound and (row := next(order, None)) is not None:
            parts[name] += groups[names[row]]
            count += len(groups[names[row]])
        if not parts[name]:
            raise UserError(
                f"{len(names)} articles or prompts are too few for the parts {', '.join(shares)}: none is left for "
                f"{name}; give more data"
            )
    return parts


def mismatched(pairs: Sequence[Pair], items: Sequence[Demonstration]) -> list[Demonstration]:
    """Each prompt with the response of another pair: the next of its group whose response differs, else any such.

    Fewer than the prompts where all responses are equal.
    """
    groups: dict[str, list[int]] = {}
    for row, pair in enumerate(pairs):
        groups.setdefault(pair.group, []).append(row)
    position = {row: index for rows in groups.values() for index, row in enumerate(rows)}
    wrong = []
    for row, pair in enumerate(pairs):
        rows = groups[pair.group]
        after = (*rows[position[row] + 1 :], *rows[: position[row]])
        anywhere = ((row + step) % len(pairs) for step in range(1, len(pairs)))
        for others in (after, anywhere):
            other = next((other for other in others if pairs[other].response != pair.response), None)
            if other is not None:
                wrong.append(Demonstration(items[row].prompt_ids, items[other].response_ids))
                break
    return wrong
