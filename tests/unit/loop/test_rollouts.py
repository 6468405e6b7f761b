from __future__ import annotations

import numpy as np
import pytest

from rlgaf_ray.loop.rollouts import identical_share, rollout_metrics, without_liked
from rlgaf_ray.types import Rollout, ScoredRollout


def rollout(prompt_id: int, *tokens: int) -> Rollout:
    ids = np.array(tokens, np.int32)
    return Rollout(prompt_id, np.array([1], np.int32), ids, np.zeros(len(ids), np.float32), "length", 0)


def test_a_response_is_identical_only_to_another_prompts() -> None:
    rollouts = [rollout(0, 5, 6), rollout(0, 5, 6), rollout(1, 7, 8), rollout(2, 7, 8), rollout(3, 7, 9)]
    assert identical_share(rollouts) == 2 / 5


def test_rollout_metrics_by_hand() -> None:
    found = rollout_metrics([rollout(0, 5, 5, 5, 5, 5, 5), rollout(1, 6, 7)], 2.0)
    assert found == {
        "rollout/response_tokens": 4.0,
        "rollout/distinct_2": pytest.approx(2 / 6),
        "rollout/degenerate_share": 0.5,
        "rollout/identical_share": 0.0,
        "rollout/stopped_share": 0.0,
        "rollout/tokens_per_second": 4.0,
    }


def test_the_highest_scores_are_left_out_in_order() -> None:
    rollouts = [rollout(row, 5, row) for row in range(5)]
    scored = [ScoredRollout(*each, 0) for each in zip(rollouts, [0.3, 2.0, -1.0, 0.9, 0.3], strict=True)]

    def kept(share: float) -> list[int]:
        return [item.prompt_id for item in without_liked(scored, share)]

    assert [kept(share) for share in (0.0, 0.2, 0.4, 0.6)] == [[0, 1, 2, 3, 4], [0, 2, 3, 4], [0, 2, 4], [0, 2]]
    assert kept(0.99) == [2]
