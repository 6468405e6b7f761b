"""Counts, samples and verdicts of leapers' walks against enumeration on a 4 x 4 board."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from rlgaf_ray.data.leaper import (
    Board,
    against_expert,
    distinct_successes,
    expert_logprobs,
    expert_walks,
    free_walks,
    judge,
    mean_log_success,
)

SMALL = Board(4)
MOVES = 4


def all_walks(board: Board, start: int, num_moves: int) -> Iterator[tuple[int, ...]]:
    if num_moves == 0:
        yield ()
        return
    for square in np.flatnonzero(board.moves[start]):
        for rest in all_walks(board, int(square), num_moves - 1):
            yield (int(square), *rest)


@pytest.fixture(scope="module")
def walks() -> list[list[tuple[int, ...]]]:
    """All walks of ``MOVES`` moves, by start."""
    return [list(all_walks(SMALL, start, MOVES)) for start in range(SMALL.num_squares)]


def test_knight_moves() -> None:
    moves = Board(8).moves
    assert [SMALL.name(square) for square in np.flatnonzero(SMALL.moves[0])] == ["c2", "b3"]
    assert moves.sum(1).min() == 2 and moves.sum(1).max() == 8 and moves.sum() == 336
    assert (moves == moves.T).all()


def test_other_leapers() -> None:
    assert Board(10, (1, 3)).moves[0].sum() == 2
    assert Board(3, (0, 1)).moves[4].sum() == 4  # the wazir in the middle
    with pytest.raises(ValueError, match="cannot move"):
        Board(3)  # the knight's middle square


def test_counts_match_enumeration(walks: list[list[tuple[int, ...]]]) -> None:
    counts = SMALL.counts(MOVES)[-1]
    for start, found in enumerate(walks):
        ends = Counter(walk[-1] for walk in found)
        assert [ends[goal] for goal in range(SMALL.num_squares)] == counts[start].tolist()


def test_expert_walks_are_uniform(walks: list[list[tuple[int, ...]]]) -> None:
    start, goal = max(SMALL.pairs(MOVES).tolist(), key=lambda pair: SMALL.counts(MOVES)[-1][tuple(pair)])
    expected = {walk for walk in walks[start] if walk[-1] == goal}
    num = 400 * len(expected)
    drawn = expert_walks(SMALL, np.tile([start, goal], (num, 1)), MOVES, np.random.default_rng(0))
    found = Counter(map(tuple, drawn.tolist()))
    assert set(found) == expected
    chi_square = sum((count - 400) ** 2 / 400 for count in found.values())
    degrees = len(expected) - 1
    assert abs(chi_square - degrees) < 4 * np.sqrt(2 * degrees)  # four standard deviations
    logprobs = expert_logprobs(SMALL, np.array([[start, goal]]), MOVES)
    assert logprobs == pytest.approx(-np.log(len(expected)))


def test_expert_walks_succeed_and_free_walks_are_legal() -> None:
    board, rng = Board(8), np.random.default_rng(1)
    pairs = rng.permutation(board.pairs(8))[:500]
    assert judge(board, pairs, expert_walks(board, pairs, 8, rng)).success.all()
    free = judge(board, pairs, free_walks(board, pairs[:, 0], 8, rng))
    assert free.legal.all() and 0 < free.arrives.mean() < 0.2


def test_illegal_walks_do_not_succeed() -> None:
    pairs = np.array([[0, 9], [0, 9], [0, 6], [0, 6]])
    answers = np.array([[6, 0, 9], [1, 0, 9], [9, 0, 9], [6, 16, 6]])  # square 16 does not exist
    verdict = judge(SMALL, pairs, answers)
    assert verdict.legal.tolist() == [True, False, True, False]
    assert verdict.arrives.tolist() == [True, True, False, True]
    assert verdict.success.tolist() == [True, False, False, False]


def test_an_unconnected_pair_raises() -> None:
    with pytest.raises(ValueError, match="no walk of 3 moves leads from a1 to a1"):
        expert_walks(SMALL, np.array([[0, 0]]), 3, np.random.default_rng(0))  # a knight changes colour at each move


def test_distinct_successes_per_prompt() -> None:
    walks = np.array([[[1, 2], [1, 2], [3, 4]], [[1, 2], [5, 6], [7, 8]]])
    success = np.array([[True, True, True], [False, True, False]])
    assert distinct_successes(walks, success).tolist() == [2, 1]


def test_mean_log_success_is_nearly_unbiased() -> None:
    assert mean_log_success(np.array([[True, True, False, False]])) == pytest.approx(-(1 / 2 + 1 / 3))
    assert mean_log_success(np.array([[True] * 4, [True, False, False, False]])) == pytest.approx(
        -(1 + 1 / 2 + 1 / 3) / 5
    )
    assert np.isnan(mean_log_success(np.zeros((3, 4), bool)))
    success = np.random.default_rng(0).random((200_000, 8)) < 0.6
    rest = sum(0.4**v / v for v in range(8, 60))
    assert mean_log_success(success) == pytest.approx(np.log(0.6) + rest, abs=2e-3)  # the plug-in estimate: -0.56


def test_entropy_and_kl_match_enumeration(walks: list[list[tuple[int, ...]]]) -> None:
    """The policy has random move probabilities from each square, independent of the goal."""
    rng = np.random.default_rng(3)
    weights = SMALL.moves * rng.gamma(1.0, size=SMALL.moves.shape)
    moves = weights / weights.sum(1, keepdims=True)

    def logprob(start: int, walk: tuple[int, ...]) -> float:
        line = [start, *walk]
        return float(np.log(moves[line[:-1], line[1:]]).sum())

    pairs = rng.permutation(SMALL.pairs(MOVES))[:40]
    expert = expert_logprobs(SMALL, pairs, MOVES)
    entropies, kls, ratios, shares = [], [], [], []
    for (start, goal), exact in zip(pairs.tolist(), expert, strict=True):
        own = np.array([logprob(start, walk) for walk in walks[start] if walk[-1] == goal])
        share = np.exp(own).sum()
        given = np.exp(own) / share
        shares.append(share)
        entropies.append(-(given * np.log(given)).sum())
        kls.append((given * (np.log(given) - exact)).sum())
        ratios.append((given * (own - exact)).sum())
    expected = [np.average(each, weights=shares) for each in (entropies, kls, ratios)]

    count = 4000
    here = np.repeat(pairs[:, :1], count, 1)
    starts, line = here.copy(), []
    for _ in range(MOVES):
        here = (moves[here].cumsum(-1) < rng.random((*here.shape, 1))).sum(-1)
        line.append(here)
    success = here == pairs[:, 1:]
    steps = np.stack([starts, *line], -1)
    logprobs = np.log(moves[steps[..., :-1], steps[..., 1:]]).sum(-1)
    found = against_expert(expert, logprobs, success)
    assert [found.entropy, found.kl, found.log_ratio] == pytest.approx(expected, abs=0.03)
    assert found.kl > 0.1
    assert found.entropy + found.kl == pytest.approx(np.average(-expert, weights=success.sum(1)))


def test_the_experts_kl_to_itself_is_zero() -> None:
    pairs = SMALL.pairs(MOVES)
    expert = expert_logprobs(SMALL, pairs, MOVES)
    found = against_expert(expert, np.repeat(expert[:, None], 3, 1), np.ones((len(pairs), 3), bool))
    assert (found.kl, found.log_ratio) == (pytest.approx(0), pytest.approx(0))
    assert found.entropy == pytest.approx(-expert.mean())
