from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlgaf_ray.data.contrast import SAME, contrast_rows, mismatched
from rlgaf_ray.types import Demonstration


def items(*responses: int, prompts: Sequence[int] | None = None) -> list[Demonstration]:
    rows = zip(range(len(responses)) if prompts is None else prompts, responses, strict=True)
    return [Demonstration(np.array([prompt]), np.array([response])) for prompt, response in rows]


def pairs(rows: list[Demonstration]) -> list[tuple[int, int]]:
    return [(int(item.prompt_ids[0]), int(item.response_ids[0])) for item in rows]


def test_contrast_prefers_answers_of_the_same_group() -> None:
    found = contrast_rows(["a", "a", "b", "c", "c"], items(10, 11, 12, 13, 13), [None] * 5)
    assert pairs(found) == [(0, 11), (1, 10), (2, 13), (3, 10), (4, 10)]
    assert contrast_rows(["c", "c"], items(13, 13), [None] * 2) == []


def test_no_answer_to_a_prompt_is_its_contrast() -> None:
    """Neither another demonstration of the prompt, nor an answer that two prompts share."""
    prompts = [0, 0, 1, 1]
    answers = items(10, 11, 11, 12, prompts=prompts)
    for groups in ("aabb", "aaaa"):
        assert pairs(contrast_rows(groups, answers, [None] * 4)) == [(0, 12), (0, 12), (1, 10), (1, 10)]
    assert contrast_rows("ab", items(10, 10, prompts=[0, 1]), [None] * 2) == []
    assert contrast_rows("aa", items(10, 11, prompts=[0, 0]), [None] * 2) == []


def test_contrast_is_the_next_wrong_answer() -> None:
    """Compared with a search through all rows, on random prompts, answers and groups."""
    random = np.random.default_rng(0)
    for _ in range(200):
        prompts, answers, groups = random.integers(0, 4, [3, 9]).tolist()
        expected: list[int | None] = []
        for row in range(9):
            right = {answer for prompt, answer in zip(prompts, answers, strict=True) if prompt == prompts[row]}
            wrong = [other % 9 for other in range(row, row + 9) if answers[other % 9] not in right]
            expected.append(next((other for other in wrong if groups[other] == groups[row]), next(iter(wrong), None)))
        assert mismatched([*map(str, groups)], items(*answers, prompts=prompts)) == expected


def test_rejected_answers_take_precedence_and_dropped_ones_give_no_contrast() -> None:
    rejected = Demonstration(np.array([0]), np.array([99]))
    found = contrast_rows(["a", "b", "c", "d"], items(10, 11, 12, 13), [rejected, None, SAME, "too long"])
    assert pairs(found) == [(0, 99), (1, 12)]


def test_many_right_answers_take_linear_time() -> None:
    """Whether of different prompts or of one. A quadratic search over the rows would take seconds."""
    count = 50_000
    prompts = [0] * (count - 1) + [1]
    assert mismatched(["all"] * count, items(*range(count), prompts=prompts)) == [count - 1] * (count - 1) + [0]
    found = contrast_rows(["all"] * count, items(*[0] * (count - 1), 1), [None] * count)
    assert {int(item.response_ids[0]) for item in found[:-1]} == {1}
    assert pairs(found[-1:]) == [(count - 1, 0)]
