"""The task ``bridge``: walk a leaper, such as the knight, from one square to another in a given number of moves.

The prompt is the goal and the start, the response one square per move; each square is one token. Every answer is judged
exactly, and the expert, which samples uniformly among all valid walks, has a known entropy. Reaching the goal needs
planning, making legal moves does not: ``task.bridge.legal_only`` masks illegal moves in training and in sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rlgaf_ray.config.task import TASKS, BridgeSettings, TaskSection
from rlgaf_ray.data.cache import content_hash
from rlgaf_ray.data.leaper import (
    Board,
    against_expert,
    distinct_successes,
    expert_logprobs,
    expert_walks,
    free_walks,
    judge,
)
from rlgaf_ray.data.splits import drawn_rows
from rlgaf_ray.data.task import Measure, Task, TaskSource, text_blocks
from rlgaf_ray.errors import UserError
from rlgaf_ray.types import EVALUATION_PARTS, Demonstration, EvaluationPart, Metrics, TextBlocks

SEED = 20230601  # for the split, the expert's walks and the base warm-up's walks; independent of run.seed
END_OF_TEXT = "<|endoftext|>"


def squares_tokenizer(board: Board) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per square, whose id is the square's number, and end of text."""
    words = [board.name(square) for square in range(board.num_squares)] + [END_OF_TEXT]
    plain = Tokenizer(WordLevel({word: row for row, word in enumerate(words)}, unk_token=END_OF_TEXT))
    plain.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    )


@dataclass(frozen=True)
class BridgeSource(TaskSource):
    task: TaskSection
    settings: BridgeSettings
    quality = TASKS["bridge"].quality
    full_length = TASKS["bridge"].full_length

    @cached_property
    def board(self) -> Board:
        one, other = self.settings.leap
        try:
            return Board(self.settings.board, (one, other))
        except ValueError as error:
            raise UserError(f"task.bridge: {error}: raise task.bridge.board or change task.bridge.leap") from error

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return squares_tokenizer(self.board)

    def tokenized(self, tokenizer: PreTrainedTokenizerBase, cache_folder: Path) -> BridgeTask:
        """Raise ``UserError`` if the tokenizer is not this board's or the configured lengths are not the task's."""
        names = [self.board.name(square) for square in range(self.board.num_squares)]
        if [tokenizer.convert_tokens_to_ids(name) for name in names] != list(range(len(names))):
            raise UserError(
                f"task.name=bridge needs a tokenizer with one token for each of its {len(names)} squares, but the "
                "model's tokenizer has others: set model.generator=tiny-gpt2, or use a model trained on this board"
            )
        lengths = {"prompt_tokens": 2, "response_tokens": self.settings.moves}
        for key, value in lengths.items():
            if getattr(self.task, key) != value:
                raise UserError(f"task.name=bridge needs task.{key}={value}, not {getattr(self.task, key)}")
        return BridgeTask(self.task, self.settings, self.board, end_of_text=len(names))


class BridgeTask(Task):
    """A random split of the connected pairs of squares into validation, test and training.

    Every training pair is a free prompt; ``task.max_demonstrations`` of them, sampled with ``task.draw_seed``, have an
    expert walk. ``contrast``: each of these walks with another goal in the prompt.
    """

    def __init__(self, task: TaskSection, settings: BridgeSettings, board: Board, *, end_of_text: int) -> None:
        self._task, self._settings, self.board, self._end_of_text = task, settings, board, end_of_text
        generator = np.random.default_rng(SEED)
        pairs = generator.permutation(board.pairs(settings.moves))
        held_out = settings.validation + settings.test
        if len(pairs) <= held_out:
            raise UserError(
                f"task.bridge: {settings.moves} moves connect {len(pairs)} pairs of squares, but "
                f"task.bridge.validation + task.bridge.test = {held_out}: lower these or raise task.bridge.board"
            )
        validation, test, training = np.split(pairs, [settings.validation, held_out])
        self.pairs: dict[EvaluationPart, np.ndarray] = {"validation": validation, "test": test}
        self.training_pairs = training
        walks = expert_walks(board, pairs, settings.moves, generator)
        self._evaluation = {
            part: _demonstrations(pairs[rows], walks[rows])
            for part, rows in zip(
                EVALUATION_PARTS,
                (slice(settings.validation), slice(settings.validation, held_out)),
                strict=True,
            )
        }
        rows = np.asarray(drawn_rows(len(training), task))
        self.demonstrations = _demonstrations(training[rows], walks[held_out:][rows])
        self._prompts = [_prompt(pair) for pair in training]
        self._other_prompts = [self._with_other_goals(row) for row in range(len(self.demonstrations))]
        self.contrast = [
            Demonstration(others[0], item.response_ids)
            for others, item in zip(self._other_prompts, self.demonstrations, strict=True)
        ]

    @property
    def prompts(self) -> list[np.ndarray]:
        return self._prompts

    def other_prompts(self, row: int) -> list[np.ndarray]:
        """Return the training prompts with the same start and another goal, shuffled; no prompts of an evaluation.

        Without any, on a small board, all training prompts with another goal.
        """
        return self._other_prompts[row]

    def negative_prompts(self, prompt_ids: np.ndarray) -> list[np.ndarray]:
        """Return the training prompts with the same start and another goal; without any, those with another goal."""
        goal, start = prompt_ids
        wrong = self.training_pairs[self.training_pairs[:, 1] != goal]
        same_start = wrong[wrong[:, 0] == start]
        return [_prompt(pair) for pair in (same_start if len(same_start) else wrong)]

    def _with_other_goals(self, row: int) -> list[np.ndarray]:
        others = self.negative_prompts(self.demonstrations[row].prompt_ids)
        return [others[each] for each in np.random.default_rng([SEED, row]).permutation(len(others))]

    @property
    def unwanted(self) -> str:
        return "walks to other goals"

    @property
    def legal(self) -> np.ndarray | None:
        """Table of allowed next tokens, bool [S + 1, S + 1] (S squares, end of text); None without ``legal_only``."""
        if not self._settings.legal_only:
            return None
        size = self.board.num_squares
        table = np.zeros((size + 1, size + 1), bool)
        table[:size, :size] = self.board.moves
        table[size] = True
        return table

    def evaluation(self, part: EvaluationPart) -> list[Demonstration]:
        return self._evaluation[part]

    def measure(self, part: EvaluationPart, num_prompts: int) -> Measure:
        return BridgeMeasure(self.board, self.pairs[part][:num_prompts], self._settings.moves)

    def verdict(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        """Return 1 for each legal walk that ends on the goal, else 0; usable as a reward function."""
        names = {self.board.name(square): square for square in range(self.board.num_squares)}
        pairs = np.array([[names[word] for word in reversed(prompt.split())] for prompt in prompts])
        return BridgeMeasure(self.board, pairs, self._settings.moves).each(completions).tolist()

    @property
    def checksum(self) -> str:
        settings = self._settings
        sizes = [settings.board, *settings.leap, settings.moves, settings.validation, settings.test, SEED]
        return content_hash([str(size) for size in sizes])

    @property
    def base_key(self) -> Sequence[str]:
        settings = self._settings
        return str(settings.base_walks), settings.base_goals, f"legal_only={settings.legal_only}"

    @property
    def max_tokens(self) -> int:
        return 2 + self._settings.moves

    def warmup_blocks(self, block_tokens: int) -> TextBlocks:
        """Return random legal walks from random squares; ``task.bridge.base_goals`` sets the goals in the prompts."""
        settings, generator = self._settings, np.random.default_rng([SEED, 1])
        starts, goals = generator.integers(self.board.num_squares, size=(2, settings.base_walks))
        walks = free_walks(self.board, starts, settings.moves, generator)
        match settings.base_goals:
            case "visited":
                goals = walks[np.arange(len(walks)), generator.integers(settings.moves, size=len(walks))]
            case "passed":
                goals = _passed(walks, generator)
            case "last":
                goals = walks[:, -1]
        items = _demonstrations(np.column_stack([starts, goals]), walks)
        return text_blocks(items, num_tokens=self.max_tokens, pad_token_id=self._end_of_text)


@dataclass(frozen=True)
class BridgeMeasure(Measure):
    """Fractions of answers that are legal, that end on the goal, and that do both."""

    board: Board
    pairs: np.ndarray  # int64 [N, 2], start and goal
    num_moves: int

    @cached_property
    def squares(self) -> dict[str, int]:
        return {self.board.name(square): square for square in range(self.board.num_squares)}

    def walks(self, texts: Sequence[str]) -> np.ndarray:
        """Parse answers to int64 [N, moves]; -1 for a word that is no square, all -1 for a wrong number of words."""
        rows = np.full((len(texts), self.num_moves), -1, np.int64)
        for row, text in enumerate(texts):
            words = text.split()
            if len(words) == self.num_moves:
                rows[row] = [self.squares.get(word, -1) for word in words]
        return rows

    def each(self, texts: Sequence[str]) -> np.ndarray:
        return judge(self.board, self.pairs, self.walks(texts)).success.astype(float)

    def __call__(self, texts: Sequence[str]) -> Metrics:
        verdict = judge(self.board, self.pairs, self.walks(texts))
        success = float(verdict.success.mean())
        return {
            "eval/success": success,
            "eval/success_stderr": (success * (1 - success) / len(texts)) ** 0.5,
            "eval/legal": float(verdict.legal.mean()),
            "eval/arrives": float(verdict.arrives.mean()),
        }

    def quick(self, texts: Sequence[str]) -> Metrics:
        verdict = judge(self.board, self.pairs[: len(texts)], self.walks(texts))
        return {"success": float(verdict.success.mean())}

    def repeated(self, samples: Sequence[Sequence[str]], logprobs: np.ndarray | None) -> Metrics:
        """Return distinct successful walks per prompt, and entropy and KL of successful walks against the expert."""
        walks = np.stack([self.walks(answers) for answers in samples])
        success = np.stack(
            [judge(self.board, self.pairs, walks[:, sample]).success for sample in range(walks.shape[1])], 1
        )
        metrics = {"eval/distinct_successes": float(distinct_successes(walks, success).mean())}
        if logprobs is None or not success.any():
            return metrics
        expert = expert_logprobs(self.board, self.pairs, self.num_moves)
        found = against_expert(expert, logprobs, success)
        return metrics | {
            "eval/success_entropy": found.entropy,
            "eval/success_entropy_real": float(-expert.mean()),
            "eval/expert_kl": found.kl,
            "eval/expert_log_ratio": found.log_ratio,
        }


def _prompt(pair: np.ndarray) -> np.ndarray:
    """Return (goal, start): the start is last, so that each move follows the square it leaves."""
    return np.array([pair[1], pair[0]], np.int32)


def _demonstrations(pairs: np.ndarray, walks: np.ndarray) -> list[Demonstration]:
    return [Demonstration(_prompt(pair), walk.astype(np.int32)) for pair, walk in zip(pairs, walks, strict=True)]


def _passed(walks: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return a random square of each of the walks [N, moves], but never the square that it ends on."""
    weights = (walks != walks[:, -1:]) * generator.random(walks.shape)
    return walks[np.arange(len(walks)), weights.argmax(1)]


def bridge_source(task: TaskSection, *, base: bool, keep_rows: bool = False) -> BridgeSource:
    """Build the task from ``task.bridge``. ``base`` and ``keep_rows`` have no effect: no data are read."""
    return BridgeSource(task, task.bridge)
