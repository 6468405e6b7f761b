from __future__ import annotations

import numpy as np
import pytest
import torch

from rlgaf_ray.data.collate import collate, collate_sequences
from rlgaf_ray.types import Demonstration, Rollout, ScoredRollout


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def scored(prompt_id: int, prompt: np.ndarray, response: np.ndarray, score: float) -> ScoredRollout:
    rollout = Rollout(
        prompt_id=prompt_id,
        prompt_ids=prompt,
        response_ids=response,
        behaviour_logprobs=-response.astype(np.float32) / 10,
        finish_reason="length",
        policy_version=4,
    )
    return ScoredRollout(rollout=rollout, score=score, discriminator_version=1)


def test_sequences_are_concatenated_and_padded_on_the_right() -> None:
    batch = collate_sequences(
        [Demonstration(ids(5, 6), ids(7)), Demonstration(ids(8), ids(9, 10, 11)), Demonstration(ids(12), ids())], 99
    )
    assert batch.token_ids.tolist() == [[5, 6, 7, 99], [8, 9, 10, 11], [12, 99, 99, 99]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert batch.response_mask.int().tolist() == [[0, 0, 1, 0], [0, 1, 1, 1], [0, 0, 0, 0]]
    assert (batch.token_ids.dtype, batch.attention_mask.dtype, batch.response_mask.dtype) == (
        torch.int64,
        torch.int64,
        torch.bool,
    )


def test_a_pad_token_within_a_response_is_not_masked() -> None:
    batch = collate_sequences([Demonstration(ids(5), ids(0, 6, 0)), Demonstration(ids(5, 5, 5, 5), ids(1))], 0)
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert batch.response_mask[0].int().tolist() == [0, 1, 1, 1, 0]


def test_collated_logprobs_are_at_response_tokens() -> None:
    batch = collate(
        [
            scored(3, ids(1, 2), ids(4, 5, 6), 0.5),
            scored(3, ids(1, 2), ids(7), -1.0),
            scored(8, ids(9), ids(10, 20), 2.0),
            scored(8, ids(9), ids(30), 0.0),
        ],
        pad_token_id=0,
        group_size=2,
    )
    expected = [[0, 0, -0.4, -0.5, -0.6], [0, 0, -0.7, 0, 0], [0, -1, -2, 0, 0], [0, -3, 0, 0, 0]]
    torch.testing.assert_close(batch.behaviour_logprobs, torch.tensor(expected, dtype=torch.float32))
    assert batch.scores.tolist() == [0.5, -1.0, 2.0, 0.0]
    assert batch.scores.dtype == torch.float32
    assert batch.group_size == 2
    assert batch.sequences.token_ids[2].tolist() == [9, 10, 20, 0, 0]


def test_broken_groups_fail_an_assertion() -> None:
    first, second = scored(1, ids(1), ids(2), 0.0), scored(2, ids(1), ids(2), 0.0)
    with pytest.raises(AssertionError, match="adjacent"):
        collate([first, second, first, second], 0, group_size=2)
    with pytest.raises(AssertionError, match="3 rollouts are not whole groups of 2"):
        collate([first, first, second], 0, group_size=2)
