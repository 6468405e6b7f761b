"""The task ``imdb``: continue a film review with a fixed sentiment, or with the sentiment that the prompt requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from rlgaf_ray.config.task import TASKS, TaskSection
from rlgaf_ray.data.counts import RowCounts
from rlgaf_ray.data.encoder import Encoder
from rlgaf_ray.data.reviews import Reviews, load_reviews
from rlgaf_ray.data.splits import Splits, drawn_rows, split_reviews
from rlgaf_ray.data.task import Task, TaskSource
from rlgaf_ray.data.tokens import TokenizedTexts, tokenize_once
from rlgaf_ray.errors import UserError
from rlgaf_ray.types import EVALUATION_PARTS, Demonstration, EvaluationPart, Rollout, Row, TextBlocks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SENTIMENTS = ("negative", "positive")
CUT = ("demonstrations", *EVALUATION_PARTS)  # the parts whose reviews are cut into demonstrations


class ImdbTask(Task):
    """Demonstrations and evaluation sets from the parts of the reviews.

    A demonstration is the beginning of a review: ``task.prompt_tokens`` tokens of prompt and exactly
    ``task.response_tokens`` of response, so that length does not reveal the source to a discriminator. Shorter reviews
    are dropped. With ``target=both`` the prompt begins with an instruction that names the sentiment (RLGAF, section
    3.3).

    ``demonstrations`` and ``contrast`` are reviews of the target and of the other sentiment, both from the part
    ``demonstrations``. With ``target=both`` they are reviews with the right and with the wrong instruction.
    """

    measure: ClassVar[str] = "sentiment"
    unwanted: ClassVar[str] = "reviews of the other sentiment"

    def __init__(
        self,
        task: TaskSection,
        reviews: Reviews,
        splits: Splits,
        tokens: TokenizedTexts,
        *,
        end_of_text: int,
        instructions: tuple[np.ndarray, np.ndarray],
        begin: Sequence[int] = (),
    ) -> None:
        self._task = task
        self._reviews = reviews
        self._splits = splits
        self._tokens = tokens
        self._end_of_text = end_of_text
        self._instructions = instructions  # before a negative and before a positive review, with ``begin``
        self._begin = np.array(begin, np.int32)  # ids that the tokenizer adds before a text (BOS)
        self._both = task.imdb.target == "both"
        self.demonstrations, self.contrast = (
            [items[row] for row in drawn_rows(len(items), task)]
            for items in (self._wanted("demonstrations")[0], self._unwanted("demonstrations"))
        )
        self.rows: Sequence[Row] = ()
        self._counts = self._counted()
        self._counts.refuse_above(task.max_dropped_share, [CUT])
        self._evaluation = {part: self._wanted(part) for part in EVALUATION_PARTS}

    def evaluation(self, part: EvaluationPart) -> list[Demonstration]:
        """Return prompts and real responses of the target sentiment, or of both."""
        return self._evaluation[part][0]

    def asked_positive(self, part: EvaluationPart) -> np.ndarray:
        """Return the requested sentiments in the order of ``evaluation``: int64, 1 = positive."""
        return self._evaluation[part][1]

    @property
    def counts(self) -> RowCounts:
        return self._counts

    @property
    def checksum(self) -> str:
        """SHA-256 of the splits and their texts; the same for every seed and tokenizer."""
        return self._splits.checksum

    @property
    def base_key(self) -> Sequence[str]:
        return [f"begin {self._begin.tolist()}"] if len(self._begin) else ()

    @property
    def warmup_key(self) -> Sequence[str]:
        return self._task.imdb.target, self._task.imdb.instruction

    @property
    def max_tokens(self) -> int:
        instruction = max(len(ids) for ids in self._instructions)
        return instruction + self._task.prompt_tokens + self._task.response_tokens

    def judge_texts(self, part: EvaluationPart) -> tuple[list[str], np.ndarray]:
        """Return full reviews that train the judge of ``part``, and their labels: int64, 1 = positive."""
        rows = self._splits.judge_test if part == "test" else self._splits.judge_validation
        return [self._reviews.texts[row] for row in rows], self._reviews.labels[rows]

    def warmup_blocks(self, block_tokens: int) -> TextBlocks:
        """Pack the reviews of part ``base``, separated by end of text, into blocks: int32 [N, block].

        An incomplete last block is dropped. Labels and instructions are not used: instructions are learned in SFT.
        Raises ``UserError`` if there is no full block.
        """
        pieces = [piece for row in self._splits.base for piece in (self._begin, self._tokens[row], [self._end_of_text])]
        stream = np.concatenate(pieces, dtype=np.int32)
        num_blocks = len(stream) // block_tokens
        if num_blocks == 0:
            raise UserError(
                f"the generator's warm-up has {len(stream)} tokens, fewer than one block: raise "
                f"task.imdb.splits.base or lower warmup.generator.block_tokens={block_tokens}"
            )
        token_ids = stream[: num_blocks * block_tokens].reshape(num_blocks, block_tokens)
        return TextBlocks(token_ids, np.broadcast_to(np.arange(block_tokens) > 0, token_ids.shape))

    def discriminator_warmup(self) -> tuple[list[Demonstration], np.ndarray]:
        """Return wanted and unwanted reviews of part ``base``, and labels: int64, 1 = wanted.

        With ``target=both`` the windows cover each full review, not only its beginning: matching a review to its
        instruction takes far more examples to learn than classifying sentiment.
        """
        wanted, _ = self._wanted("base", whole=self._both)
        unwanted = self._unwanted("base", whole=self._both)
        return wanted + unwanted, np.repeat(np.array([1, 0], np.int64), [len(wanted), len(unwanted)])

    def evaluated_ids(self, item: Demonstration | Rollout) -> np.ndarray:
        """Return prompt and response without the instruction, which would reveal the sentiment to the judge."""
        return np.concatenate([item.prompt_ids[-self._task.prompt_tokens :], item.response_ids])

    def _wanted(self, part: str, *, whole: bool = False) -> tuple[list[Demonstration], np.ndarray]:
        if not self._both:
            label = SENTIMENTS.index(self._task.imdb.target)
            items = self._demonstrations(part, label, instruction=label)
            return items, np.full(len(items), label, np.int64)
        parts = [self._demonstrations(part, label, instruction=label, whole=whole) for label in (0, 1)]
        return _shuffled([*parts[0], *parts[1]], np.repeat([0, 1], [len(part) for part in parts]))

    def _unwanted(self, part: str, *, whole: bool = False) -> list[Demonstration]:
        if not self._both:
            label = 1 - SENTIMENTS.index(self._task.imdb.target)
            return self._demonstrations(part, label, instruction=label)
        parts = [self._demonstrations(part, label, instruction=1 - label, whole=whole) for label in (0, 1)]
        return _shuffled([*parts[0], *parts[1]], np.repeat([0, 1], [len(part) for part in parts]))[0]

    def _counted(self) -> RowCounts:
        """Count long enough reviews of both sentiments. The base warm-up and the judges read reviews of any length."""
        needed = self._task.prompt_tokens + self._task.response_tokens
        reason = f"shorter than task.prompt_tokens + task.response_tokens = {needed}"
        lengths = {part: self._tokens.lengths[getattr(self._splits, part)] for part in CUT}
        return RowCounts(
            {part: int((tokens >= needed).sum()) for part, tokens in lengths.items()},
            {part: {reason: int((tokens < needed).sum())} for part, tokens in lengths.items()},
            self._reviews.left_out,
        )

    def _demonstrations(self, part: str, label: int, *, instruction: int, whole: bool = False) -> list[Demonstration]:
        rows = getattr(self._splits, part)
        num_prompt, num_response = self._task.prompt_tokens, self._task.response_tokens
        windows = self._tokens.windows(
            rows[self._reviews.labels[rows] == label], num_prompt + num_response, whole=whole
        )
        if not len(windows):
            raise UserError(
                f"no {SENTIMENTS[label]} review of the part {part} ({len(rows)} reviews) has the "
                f"{num_prompt + num_response} tokens that task.prompt_tokens={num_prompt} and "
                f"task.response_tokens={num_response} need: lower these or give more reviews"
            )
        before = self._instructions[instruction]
        return [
            Demonstration(prompt_ids=np.concatenate([before, row[:num_prompt]]), response_ids=row[num_prompt:])
            for row in windows
        ]


def _shuffled(items: list[Demonstration], labels: np.ndarray) -> tuple[list[Demonstration], np.ndarray]:
    """Shuffle with a fixed seed, so that every prefix mixes both sentiments."""
    order = np.random.default_rng(0).permutation(len(items))
    return [items[row] for row in order], labels[order]


@dataclass(frozen=True, slots=True)
class ImdbSource(TaskSource):
    """The reviews and their splits."""

    task: TaskSection
    reviews: Reviews
    splits: Splits
    quality: ClassVar[str] = TASKS["imdb"].quality
    full_length: ClassVar[bool] = TASKS["imdb"].full_length
    texts: ClassVar[Sequence[tuple[str, str]]] = ()  # no check needed: the base model was trained on part ``base`` only

    @classmethod
    def load(cls, task: TaskSection) -> ImdbSource:
        """Read and split the reviews. Raises ``UserError`` if they cannot be read or are too few for the splits."""
        reviews = load_reviews(task.imdb)
        return cls(task, reviews, split_reviews(reviews, task.imdb.splits))

    @property
    def warmup_texts(self) -> Sequence[str]:
        return [self.reviews.texts[row] for row in self.splits.base]

    def tokenized(self, tokenizer: PreTrainedTokenizerBase, cache_folder: Path) -> ImdbTask:
        """Tokenise the reviews, cached under ``cache_folder``.

        Raises ``UserError`` if the tokenizer has no end-of-text token or no review is long enough.
        """
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer names no end-of-text token: set eos_token in its tokenizer_config.json")
        both = self.task.imdb.target == "both"
        texts = [self.task.imdb.instruction.replace("{sentiment}", name) if both else "" for name in SENTIMENTS]
        encoder = Encoder(tokenizer)
        negative, positive = (np.array([*encoder.bos, *ids], np.int32) for ids in encoder(texts))
        return ImdbTask(
            self.task,
            self.reviews,
            self.splits,
            tokenize_once(self.reviews.texts, tokenizer, cache_folder),
            end_of_text=tokenizer.eos_token_id,
            instructions=(negative, positive),
            begin=encoder.bos,
        )


def imdb_source(task: TaskSection, *, base: bool, keep_rows: bool = False) -> ImdbSource:
    """Read and split the reviews of ``task.imdb``. ``base`` and ``keep_rows`` have no effect."""
    return ImdbSource.load(task)
