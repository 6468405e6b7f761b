from __future__ import annotations

import numpy as np
import pytest

from rlgaf_ray.loop.rollouts import identical_share, rollout_metrics
from rlgaf_ray.types import Rollout


def rollout(prompt_id: int, *tokens: int) -> Rollout:
    ids = np.array(tokens, np.int32)
    return Rollout(prompt_id, np.array([1], np.int32), ids, np.zeros(len(ids), np.float32), "length", 0)


def test_a_response_is_identical_only_to_another_prompts() -> None:
    rollouts = [rollout(0, 5, 6), rollout(0, 5, 6), rollout(1, 7, 8), rollout(2, 7, 8), rollout(3, 7, 9)]
    assert identical_share(rollouts) == 2 / 5


def test_what_is_logged() -> None:
    found = rollout_metrics([rollout(0, 5, 5, 5, 5, 5, 5), rollout(1, 6, 7)], 2.0)
    assert found == {
        "rollout/response_tokens": 4.0,
        "rollout/distinct_2": pytest.approx(2 / 6),
        "rollout/degenerate_share": 0.5,
        "rollout/identical_share": 0.0,
        "rollout/stopped_share": 0.0,
        "rollout/tokens_per_second": 4.0,
    }
