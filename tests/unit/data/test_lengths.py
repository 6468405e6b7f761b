from __future__ import annotations

import numpy as np

from rlgaf_ray.data.lengths import on_one_prompt
from rlgaf_ray.types import Demonstration


def item(prompt: list[int], response: list[int]) -> Demonstration:
    return Demonstration(np.array(prompt, np.int32), np.array(response, np.int32))


def test_a_pair_stands_on_the_first_ones_prompt() -> None:
    first, second = on_one_prompt(item([1, 2], [3, 4, 5]), item([9], [6, 7]))
    assert first.prompt_ids.tolist() == second.prompt_ids.tolist() == [1, 2]
    assert (first.response_ids.tolist(), second.response_ids.tolist()) == ([3, 4], [6, 7])
