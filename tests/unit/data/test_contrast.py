from __future__ import annotations

import numpy as np

from rlgaf_ray.data.contrast import SAME, contrast_rows
from rlgaf_ray.types import Demonstration


def items(*responses: int) -> list[Demonstration]:
    return [Demonstration(np.array([row]), np.array([response])) for row, response in enumerate(responses)]


def pairs(rows: list[Demonstration]) -> list[tuple[int, int]]:
    return [(int(item.prompt_ids[0]), int(item.response_ids[0])) for item in rows]


def test_contrast_is_the_answer_to_another_prompt_of_the_group() -> None:
    found = contrast_rows(["a", "a", "b", "c", "c"], items(10, 11, 12, 13, 13), [None] * 5)
    assert pairs(found) == [(0, 11), (1, 10), (2, 13), (3, 10), (4, 10)]
    assert contrast_rows(["c", "c"], items(13, 13), [None] * 2) == []


def test_a_rejected_answer_goes_first_and_one_left_out_leaves_no_contrast() -> None:
    rejected = Demonstration(np.array([0]), np.array([99]))
    found = contrast_rows(["a", "b", "c", "d"], items(10, 11, 12, 13), [rejected, None, SAME, "too long"])
    assert pairs(found) == [(0, 99), (1, 12)]


def test_many_equal_answers_take_no_time() -> None:
    """Seconds where every row would look through all that follow it."""
    count = 50_000
    found = contrast_rows(["all"] * count, items(*[0] * (count - 1), 1), [None] * count)
    assert {int(item.response_ids[0]) for item in found[:-1]} == {1}
    assert pairs(found[-1:]) == [(count - 1, 0)]
