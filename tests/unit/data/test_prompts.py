from __future__ import annotations

import json

import numpy as np
import pytest

from rlgaf_ray.data.prompts import PromptStream
from rlgaf_ray.errors import UserError


def test_every_epoch_is_a_different_permutation() -> None:
    stream = PromptStream(10, seed=3)
    epochs = stream.next(40).reshape(4, 10)
    assert epochs.dtype == np.int64
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(10), (4, 1)))
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4


def test_the_order_does_not_depend_on_the_batch_sizes() -> None:
    whole = PromptStream(7, seed=1).next(50)
    stream = PromptStream(7, seed=1)
    pieces = [stream.next(count) for count in (1, 0, 6, 7, 15, 21)]
    assert [len(piece) for piece in pieces] == [1, 0, 6, 7, 15, 21]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_seeds_give_different_orders() -> None:
    assert PromptStream(20, seed=0).next(20).tolist() != PromptStream(20, seed=1).next(20).tolist()


@pytest.mark.parametrize("consumed", [0, 3, 9, 10, 11, 25])
def test_a_resumed_stream_continues_identically(consumed: int) -> None:
    stream = PromptStream(10, seed=5)
    stream.next(consumed)
    state = json.loads(json.dumps(stream.state_dict()))
    resumed = PromptStream(10, seed=5)
    resumed.load_state_dict(state)
    np.testing.assert_array_equal(resumed.next(33), stream.next(33))
    assert resumed.state_dict() == stream.state_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_items": 11}, "saved with num_items=11, this run has 10"),
        ({"seed": 6}, "saved with seed=6, this run has 5"),
        ({"position": 11}, "out of range"),
        ({"epoch": -1}, "out of range"),
        ({"position": "3"}, "damaged prompt stream state"),
        ({"extra": 1}, "damaged prompt stream state"),
    ],
)
def test_damaged_state_raises_and_changes_nothing(change: dict[str, int], message: str) -> None:
    stream = PromptStream(10, seed=5)
    stream.next(4)
    before = stream.state_dict()
    with pytest.raises(UserError, match=message):
        stream.load_state_dict(before | change)
    assert stream.state_dict() == before
    with pytest.raises(UserError, match="damaged prompt stream state"):
        stream.load_state_dict({"num_items": 10})
