"""Walks of a leaper, such as the knight, between two squares: exact counts, uniform samples and verdicts.

The number of walks of n moves from s to g is ``counts[n][s, g]``, the n-th power of the board's adjacency matrix. The
expert, which samples uniformly among them, is therefore known in closed form: its entropy is ``log counts[n][s, g]``,
and with r moves remaining it moves to w with probability proportional to ``counts[r - 1][w, g]``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Board:
    """A board of ``size`` x ``size`` squares, numbered row by row. ``leap``: a move's lengths along the two axes."""

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
        """Adjacency matrix of the moves: bool [S, S], symmetric."""
        rows, columns = np.divmod(np.arange(self.num_squares), self.size)
        across = np.abs(rows[:, None] - rows), np.abs(columns[:, None] - columns)
        one, other = self.leap
        return ((across[0] == one) & (across[1] == other)) | ((across[0] == other) & (across[1] == one))

    def counts(self, num_moves: int) -> list[np.ndarray]:
        """Return the numbers of walks of 0, 1, ..., ``num_moves`` moves between all squares: int64 [S, S] each."""
        adjacency = self.moves.astype(np.int64)
        found = [np.eye(self.num_squares, dtype=np.int64)]
        for _ in range(num_moves):
            found.append(found[-1] @ adjacency)
        return found

    def name(self, square: int) -> str:
        """Return the square's name in chess notation: a1 is square 0, b1 square 1."""
        row, column = divmod(square, self.size)
        return f"{chr(ord('a') + column)}{row + 1}"

    def pairs(self, num_moves: int) -> np.ndarray:
        """Return every (start, goal) that a walk of ``num_moves`` moves connects: int64 [P, 2]."""
        return np.argwhere(self.counts(num_moves)[-1] > 0)


def expert_walks(board: Board, pairs: np.ndarray, num_moves: int, rng: np.random.Generator) -> np.ndarray:
    """Sample one walk for each (start, goal), uniformly among all: int64 [N, num_moves], without the start.

    Raises ``ValueError`` if no walk connects a pair.
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
    """Sample walks whose every move is uniform over the legal moves: int64 [N, num_moves]."""
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

    legal: np.ndarray  # all moves are legal
    arrives: np.ndarray  # the last square is the goal

    @property
    def success(self) -> np.ndarray:
        return self.legal & self.arrives


def judge(board: Board, pairs: np.ndarray, walks: np.ndarray) -> Verdict:
    """Judge one walk per (start, goal): ``walks`` int64 [N, moves]. A number outside the board is illegal."""
    inside: np.ndarray = np.all((walks >= 0) & (walks < board.num_squares), axis=1)
    squares = np.where(inside[:, None], walks, 0)
    steps = np.column_stack([pairs[:, 0], squares])
    legal = inside & board.moves[steps[:, :-1], steps[:, 1:]].all(1)
    return Verdict(legal, walks[:, -1] == pairs[:, 1])


def expert_logprobs(board: Board, pairs: np.ndarray, num_moves: int) -> np.ndarray:
    """Return the expert's log-prob of each pair's walks, in nats: float64 [N].

    It is the same for all walks of a pair, and its negative is the expert's entropy.
    """
    return -np.log(board.counts(num_moves)[-1][pairs[:, 0], pairs[:, 1]])


def distinct_successes(walks: np.ndarray, success: np.ndarray) -> np.ndarray:
    """Count distinct successful walks per prompt: ``walks`` [P, k, moves], ``success`` [P, k] -> int64 [P]."""
    return np.array(
        [len(np.unique(answers[good], axis=0)) for answers, good in zip(walks, success, strict=True)], np.int64
    )


def mean_log_success(success: np.ndarray) -> float:
    """Estimate the log of a prompt's success rate s, averaged over successful answers: ``success`` bool [P, k].

    With n successes among k answers, 1 / n + 1 / (n + 1) + ... + 1 / (k - 1) estimates -log s (Zhang 2012, Neural
    Computation 24, entropy estimation). The bias is the remainder of the series, s times the sum of (1 - s)^v / v over
    v >= k. NaN without a success.
    """
    counts, total = success.sum(1), success.shape[1]
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, total))])  # harmonic numbers H_0, ..., H_{k-1}
    found = counts > 0
    if not found.any():
        return float("nan")
    return float((counts[found] * (harmonic[counts[found] - 1] - harmonic[-1])).sum() / counts.sum())


@dataclass(frozen=True, slots=True)
class AgainstExpert:
    """A policy's successful walks compared with the expert's, in nats, averaged over the successful answers."""

    entropy: float  # of the policy's walks given success
    kl: float  # KL(policy given success || expert); the expert's entropy is ``entropy + kl``
    log_ratio: float  # log of the policy's probability of a walk over the expert's


def against_expert(expert_logprobs: np.ndarray, logprobs: np.ndarray, success: np.ndarray) -> AgainstExpert:
    """Estimate entropy and KL from samples.

    Args:
        expert_logprobs: exact, float [P].
        logprobs: the policy's, of its sampled answers, float [P, k].
        success: bool [P, k].

    With policy q, success rate s at a prompt and expert e, a walk given success has log-prob log q - log s, hence
    entropy E[log s - log q] and KL E[log q - log s - log e].
    """
    ratios = (logprobs - expert_logprobs[:, None])[success]
    if not len(ratios):
        return AgainstExpert(*[float("nan")] * 3)
    log_success = mean_log_success(success)
    entropy = log_success - float(logprobs[success].mean())
    return AgainstExpert(entropy, float(ratios.mean()) - log_success, float(ratios.mean()))
