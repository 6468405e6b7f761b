"""Walks of a chess piece that leaps, such as the knight, between two squares: counted, sampled and judged exactly.

A walk of n moves from s to g is a word whose letters are squares. There are ``counts[n][s, g]`` of them, powers of the
board's adjacency matrix, so that the expert who draws one of them uniformly is known in closed form: its entropy is
``log counts``, and it goes to w, with r moves left, in proportion to ``counts[r - 1][w, g]``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Board:
    """A square board of ``size`` x ``size`` squares, numbered row by row; ``leap``: how far a move goes both ways."""

    size: int = 8
    leap: tuple[int, int] = (1, 2)

    def __post_init__(self) -> None:
        if self.size < 1 or not self.moves.any(1).all():
            raise ValueError(f"a {self.leap} leaper cannot move from some square of a board of {self.size}")

    @property
    def num_squares(self) -> int:
        return self.size**2

    @cached_property
    def moves(self) -> np.ndarray:
        """Whether a move leads from a square to another: bool [S, S], symmetric."""
        rows, columns = np.divmod(np.arange(self.num_squares), self.size)
        across = np.abs(rows[:, None] - rows), np.abs(columns[:, None] - columns)
        one, other = self.leap
        return ((across[0] == one) & (across[1] == other)) | ((across[0] == other) & (across[1] == one))

    def counts(self, num_moves: int) -> list[np.ndarray]:
        """Walks of 0, 1, ..., ``num_moves`` moves from each square to each: int64 [S, S] each."""
        adjacency = self.moves.astype(np.int64)
        found = [np.eye(self.num_squares, dtype=np.int64)]
        for _ in range(num_moves):
            found.append(found[-1] @ adjacency)
        return found

    def name(self, square: int) -> str:
        """As chess players write it: a1 is square 0, b1 square 1."""
        row, column = divmod(square, self.size)
        return f"{chr(ord('a') + column)}{row + 1}"

    def pairs(self, num_moves: int) -> np.ndarray:
        """Every (start, goal) that a walk of ``num_moves`` moves joins: int64 [P, 2]."""
        return np.argwhere(self.counts(num_moves)[-1] > 0)


def expert_walks(board: Board, pairs: np.ndarray, num_moves: int, rng: np.random.Generator) -> np.ndarray:
    """One walk for each (start, goal), uniform over those that there are: int64 [N, num_moves], the start left out.

    Raises ``ValueError`` for a pair that no walk joins.
    """
    counts = board.counts(num_moves)
    here, goals = pairs[:, 0], pairs[:, 1]
    if not counts[-1][here, goals].all():
        start, goal = pairs[counts[-1][here, goals] == 0][0]
        raise ValueError(f"no walk of {num_moves} moves leads from {board.name(start)} to {board.name(goal)}")
    walks = np.empty((len(pairs), num_moves), np.int64)
    for move in range(num_moves):
        onward = counts[num_moves - move - 1][:, goals].T * board.moves[here]  # [N, S]
        reached = onward.cumsum(1)
        drawn = (rng.random(len(pairs)) * reached[:, -1]).astype(np.int64)  # 0 ... total - 1
        here = walks[:, move] = (reached <= drawn[:, None]).sum(1)
    return walks


def free_walks(board: Board, starts: np.ndarray, num_moves: int, rng: np.random.Generator) -> np.ndarray:
    """Each move uniform over the legal ones, towards no goal: int64 [N, num_moves]."""
    here = starts
    walks = np.empty((len(starts), num_moves), np.int64)
    for move in range(num_moves):
        reached = board.moves[here].cumsum(1)
        drawn = (rng.random(len(starts)) * reached[:, -1]).astype(np.int64)
        here = walks[:, move] = (reached <= drawn[:, None]).sum(1)
    return walks


@dataclass(frozen=True, slots=True)
class Verdict:
    """Verdicts on N answers, each field bool [N]."""

    legal: np.ndarray  # every move is one of the piece's
    arrives: np.ndarray  # the last square is the goal

    @property
    def success(self) -> np.ndarray:
        return self.legal & self.arrives


def judge(board: Board, pairs: np.ndarray, walks: np.ndarray) -> Verdict:
    """``walks``: [N, moves], what was answered for each (start, goal); anything that is no square is illegal."""
    inside: np.ndarray = np.all((walks >= 0) & (walks < board.num_squares), axis=1)
    squares = np.where(inside[:, None], walks, 0)
    steps = np.column_stack([pairs[:, 0], squares])
    legal = inside & board.moves[steps[:, :-1], steps[:, 1:]].all(1)
    return Verdict(legal, walks[:, -1] == pairs[:, 1])


def expert_logprobs(board: Board, pairs: np.ndarray, num_moves: int) -> np.ndarray:
    """log p of a successful walk under the expert, the same for all that join a pair, in nats: float64 [N].

    Its negative is the expert's entropy.
    """
    return -np.log(board.counts(num_moves)[-1][pairs[:, 0], pairs[:, 1]])


def distinct_successes(walks: np.ndarray, success: np.ndarray) -> np.ndarray:
    """How many different successful walks each prompt has: ``walks`` [P, k, moves], ``success`` [P, k] -> int64 [P]."""
    return np.array(
        [len(np.unique(answers[good], axis=0)) for answers, good in zip(walks, success, strict=True)], np.int64
    )


def mean_log_success(success: np.ndarray) -> float:
    """log of a prompt's share of successes, averaged over successful answers, from k answers a prompt: bool [P, k].

    With n successes among k, 1 / n + 1 / (n + 1) + ... + 1 / (k - 1) estimates -log s (Zhang 2012, Neural Computation
    24, entropy estimation): the bias is the series' rest, s times the sum of (1 - s)^v / v over v >= k. NaN where
    nothing succeeds.
    """
    counts, total = success.sum(1), success.shape[1]
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, total))])  # of 0, 1, ..., k - 1
    found = counts > 0
    if not found.any():
        return float("nan")
    return float((counts[found] * (harmonic[counts[found] - 1] - harmonic[-1])).sum() / counts.sum())


@dataclass(frozen=True, slots=True)
class AgainstExpert:
    """A policy's successful walks beside the expert's, in nats, averaged over the policy's successful answers."""

    entropy: float  # of the policy's walks, given that they succeed
    kl: float  # from the policy's successful walks to the expert's; the expert's entropy is the sum of both
    log_ratio: float  # log of the policy's probability of a walk over the expert's


def against_expert(expert_logprobs: np.ndarray, logprobs: np.ndarray, success: np.ndarray) -> AgainstExpert:
    """Estimated from samples: the expert's log-probs are exact, float [P]; the policy's of its answers float [P, k].

    With q the policy, s its share of successes at a prompt and e the expert, the policy's walks given success have
    log-prob log q - log s, hence entropy E[log s - log q] and KL E[log q - log s - log e].
    """
    ratios = (logprobs - expert_logprobs[:, None])[success]
    if not len(ratios):
        return AgainstExpert(*[float("nan")] * 3)
    log_success = mean_log_success(success)
    entropy = log_success - float(logprobs[success].mean())
    return AgainstExpert(entropy, float(ratios.mean()) - log_success, float(ratios.mean()))
