from __future__ import annotations

import numpy as np

from rlgaf_ray.data.contrast import SAME, contrast_rows
from rlgaf_ray.types import Demonstration


def items(*responses: int) -> list[Demonstration]:
    return [Demonstration(np.array([row]), np.array([response])) for row, response in enumerate(responses)]


def pairs(rows: list[Demonstration]) -> list[tuple[int, int]]:
    return [(int(item.prompt_ids[0]), int(item.response_ids[0])) for item in rows]


def test_contrast_prefers_answers_of_the_same_group() -> None:
    found = contrast_rows(["a", "a", "b", "c", "c"], items(10, 11, 12, 13, 13), [None] * 5)
    assert pairs(found) == [(0, 11), (1, 10), (2, 13), (3, 10), (4, 10)]
    assert contrast_rows(["c", "c"], items(13, 13), [None] * 2) == []


def test_rejected_answers_take_precedence_and_dropped_ones_give_no_contrast() -> None:
    rejected = Demonstration(np.array([0]), np.array([99]))
    found = contrast_rows(["a", "b", "c", "d"], items(10, 11, 12, 13), [rejected, None, SAME, "too long"])
    assert pairs(found) == [(0, 99), (1, 12)]


def test_many_equal_answers_take_linear_time() -> None:
    """A quadratic search over the rows would take seconds."""
    count = 50_000
    found = contrast_rows(["all"] * count, items(*[0] * (count - 1), 1), [None] * count)
    assert {int(item.response_ids[0]) for item in found[:-1]} == {1}
    assert pairs(found[-1:]) == [(count - 1, 0)]
