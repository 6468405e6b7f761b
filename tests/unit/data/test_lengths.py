from __future__ import annotations

import numpy as np
import pytest

from rlgaf_ray.data.lengths import View, match_lengths, on_one_prompt
from rlgaf_ray.types import Demonstration

END = 0


def item(prompt: list[int], response: list[int]) -> Demonstration:
    return Demonstration(np.array(prompt, np.int32), np.array(response, np.int32))


def tokens(kind: list[Demonstration]) -> list[list[int]]:
    return [row.response_ids.tolist() for row in kind]


def test_on_one_prompt_uses_the_first_prompt() -> None:
    first, second = on_one_prompt(item([1, 2], [3, 4, 5]), item([9], [6, 7]))
    assert first.prompt_ids.tolist() == second.prompt_ids.tolist() == [1, 2]
    assert (first.response_ids.tolist(), second.response_ids.tolist()) == ([3, 4], [6, 7])


def test_rows_are_truncated_to_the_shortest_kind() -> None:
    real = [item([1], [2, 3, 4, 5]), item([1], [2, END])]
    fake = [item([7], [8, 9]), item([7], [8, 9, 10, END])]
    contrast = [item([1], [6, 6, 6]), item([1], [5, 5])]
    found = match_lengths(real, fake, contrast, view=View([END]))
    assert [tokens(kind) for kind in found] == [[[2, 3], [2]], [[8, 9], [8]], [[6, 6], [5]]]
    assert found[1][0].prompt_ids.tolist() == [7]


def test_a_kind_with_fewer_rows_is_cycled() -> None:
    real, fake = [item([1], [2, 2, 2])], [item([1], [3] * length) for length in (2, 5, 4)]
    found = match_lengths(real, fake, [], view=View([END]))
    assert [tokens(kind) for kind in found] == [[[2, 2]], [[3, 3], [3, 3, 3], [3, 3, 3]], []]


def test_equal_lengths_are_unchanged() -> None:
    real, fake = [item([1], [2, 3, 4])] * 2, [item([1], [5, 6, 7])] * 2
    found = match_lengths(real, fake, view=View([END]))
    assert [tokens(kind) for kind in found] == [tokens(real), tokens(fake)]


def test_matched_lengths_and_ends_do_not_reveal_the_kind() -> None:
    """Short answers that end with end of text, against long truncated ones, which are easy to distinguish."""
    generator = np.random.default_rng(0)
    real = [item([1], [2] * generator.integers(1, 6) + [END]) for _ in range(200)]
    fake = [item([1], [2] * generator.integers(4, 12)) for _ in range(200)]
    before = [np.mean([len(row.response_ids) for row in kind]) for kind in (real, fake)]
    assert before[1] - before[0] > 2
    real, fake = match_lengths(real, fake, view=View([END]))
    assert tokens(real) == tokens(fake)  # all tokens are equal, so that only lengths and ends could differ


@pytest.mark.parametrize(
    ("response", "expected"), [([2, 3, END], [2, 3]), ([2, END, 3], [2, END, 3]), ([END], [END]), ([2], [2])]
)
def test_the_end_is_removed(response: list[int], expected: list[int]) -> None:
    assert tokens(View([END]).read([item([1], response)])) == [expected]


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        (View(), [2, 3, 4, END]),
        (View([END]), [2, 3, 4]),
        (View(last_tokens=2), [4, END]),
        (View([END], last_tokens=2), [3, 4]),
        (View([END], last_tokens=9), [2, 3, 4]),
    ],
)
def test_a_view_is_a_slice_of_the_response(view: View, expected: list[int]) -> None:
    answer = item([7, 8], [2, 3, 4, END])
    (seen,) = view.read([answer])
    assert (seen.prompt_ids.tolist(), seen.response_ids.tolist()) == ([7, 8], expected)
    assert answer.response_ids[view.span(answer)].tolist() == expected


def test_matching_last_tokens_keeps_the_end() -> None:
    real, fake = [item([1], [2, 3, 4, 5])], [item([1], [6, 7]), item([1], [8, 9, 10, 11])]
    found = match_lengths(real, fake, view=View(last_tokens=3))
    assert [tokens(kind) for kind in found] == [[[4, 5]], [[6, 7], [9, 10, 11]]]


def test_an_empty_response_has_an_empty_view() -> None:
    nothing = Demonstration(np.array([1], np.int32), np.zeros(0, np.int32))
    assert tokens(View([END], last_tokens=2).read([nothing])) == [[]]
