"""Monte-Carlo action values against exact enumeration, on three tokens and four positions."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest

from rlgaf_ray.loop.monte_carlo import evaluated_positions, prefixes, whole_responses, with_action_values
from rlgaf_ray.types import Prompt, Rollout, ScoredRollout

VOCABULARY, LENGTH, PROMPT = 3, 4, np.array([7, 8], np.int32)
TABLE = np.random.default_rng(0).dirichlet(np.ones(VOCABULARY), size=VOCABULARY + 1)  # next token given the last one


def probability(last: int | None) -> np.ndarray:
    return TABLE[VOCABULARY if last is None else last]


@cache
def reward(response: tuple[int, ...]) -> float:
    """An arbitrary function of the response."""
    return float(np.random.default_rng(list(response)).normal())


def exact_value(prefix: tuple[int, ...]) -> float:
    """Expected reward over all continuations."""
    total = 0.0
    for rest in itertools.product(range(VOCABULARY), repeat=LENGTH - len(prefix)):
        weight, last = 1.0, prefix[-1]
        for token in rest:
            weight *= probability(last)[token]
            last = token
        total += weight * reward(prefix + rest)
    return total


def rollout(response: tuple[int, ...], prompt_id: int = 0) -> Rollout:
    ids = np.array(response, np.int32)
    return Rollout(prompt_id, PROMPT, ids, np.zeros(len(ids), np.float32), "length", 0)


def complete(parts: list[Prompt], num_completions: int) -> list[Rollout]:
    """Sample each prompt to its token budget, as an engine does."""
    generator, completions = np.random.default_rng(1), []
    for part in parts:
        assert part.max_new_tokens is not None
        for _ in range(num_completions):
            last, tokens = int(part.token_ids[-1]), []
            for _ in range(part.max_new_tokens):
                last = int(generator.choice(VOCABULARY, p=probability(last)))
                tokens.append(last)
            ids = np.array(tokens, np.int32)
            zeros = np.zeros(len(ids), np.float32)
            completions.append(Rollout(part.prompt_id, part.token_ids, ids, zeros, "length", 0))
    return completions


def search(rollouts: list[Rollout], num_completions: int, stride: int = 1) -> list[ScoredRollout]:
    parts = prefixes(rollouts, stride=stride, max_response_tokens=LENGTH)
    whole = whole_responses(rollouts, complete(parts, num_completions))
    assert all((item.prompt_ids == PROMPT).all() and len(item.response_ids) == LENGTH for item in whole)
    return with_action_values(
        [ScoredRollout(item, 0.0, 0) for item in rollouts],
        np.array([reward(tuple(item.response_ids.tolist())) for item in rollouts]),
        np.array([reward(tuple(item.response_ids.tolist())) for item in whole]),
        stride=stride,
        num_completions=num_completions,
    )


RESPONSES = [(0, 1, 2, 0), (2, 2, 1, 1)]


def test_values_converge_to_exact_enumeration() -> None:
    num_completions = 20_000
    for response, item in zip(RESPONSES, search([rollout(r) for r in RESPONSES], num_completions), strict=True):
        exact = [exact_value(response[:length]) for length in range(1, LENGTH + 1)]
        assert item.action_values is not None and item.action_values.dtype == np.float32
        # rewards have a deviation of about 1: four standard errors
        assert item.action_values.tolist() == pytest.approx(exact, abs=4 / num_completions**0.5)
        assert item.action_values[-1] == pytest.approx(reward(response))  # the full response is scored directly


@pytest.mark.slow
def test_the_error_falls_with_the_square_root_of_the_completions() -> None:
    errors = []
    for num_completions in (100, 10_000):
        items = search([rollout(r) for r in RESPONSES * 8], num_completions)
        exact = [[exact_value(r[:length]) for length in range(1, LENGTH)] for r in RESPONSES * 8]
        values = np.array([item.action_values[:-1] for item in items if item.action_values is not None])
        errors.append(float(np.sqrt(np.mean((values - np.array(exact)) ** 2))))
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.5)


def test_a_stride_credits_its_tokens_together() -> None:
    assert [evaluated_positions(7, stride) for stride in (1, 2, 3, 7)] == [[1, 2, 3, 4, 5, 6], [2, 4, 6], [3, 6], []]
    (item,) = search([rollout(RESPONSES[0])], num_completions=2, stride=3)
    assert item.action_values is not None
    first, last = item.action_values[0], item.action_values[-1]
    assert item.action_values.tolist() == [first, first, first, last]
    assert last == pytest.approx(reward(RESPONSES[0])) and first != last


def test_responses_of_different_length_keep_their_own_values() -> None:
    rollouts = [rollout((0, 1)), rollout((2,)), rollout((1, 1, 1))]
    parts = prefixes(rollouts, stride=1, max_response_tokens=LENGTH)
    assert [(part.prompt_id, part.token_ids.tolist(), part.max_new_tokens) for part in parts] == [
        (0, [7, 8, 0], 3),
        (2, [7, 8, 1], 3),
        (2, [7, 8, 1, 1], 2),
    ]
    items = with_action_values(
        [ScoredRollout(item, 0.0, 0) for item in rollouts],
        np.array([1.0, 2.0, 3.0]),
        np.array([10.0, 30.0, 40.0, 60.0, 70.0, 90.0]),
        stride=1,
        num_completions=2,
    )
    assert [item.action_values.tolist() for item in items if item.action_values is not None] == [
        [20.0, 1.0],
        [2.0],
        [50.0, 80.0, 3.0],
    ]
