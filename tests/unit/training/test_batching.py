"""Micro-batches and their distribution across ranks: hand-worked plans, and shares that sum to one."""

from __future__ import annotations

import pytest
import torch

from rlgaf_ray.objectives.policy import LossAverage, masked_average
from rlgaf_ray.training.batching import Batching, balanced_shares, shuffled_minibatches
from rlgaf_ray.training.distributed import Group
from rlgaf_ray.types import SequenceBatch

LENGTHS = [3, 9, 2, 8, 5]
WITH_AN_EMPTY_RESPONSE = [3, 9, 1, 8, 5]  # plus a prompt of one token


def batch(lengths: list[int], num_prompt: int = 1) -> SequenceBatch:
    positions = torch.arange(max(lengths))
    present = positions < torch.tensor(lengths)[:, None]
    return SequenceBatch(present.long() * 7, present.long(), present & (positions >= num_prompt))


def of_rank(rank: int, size: int, **settings: int) -> Batching:
    return Batching(settings.get("rows", 64), settings.get("tokens"), Group(rank, size))


def test_without_a_budget_a_single_process_keeps_the_row_order() -> None:
    assert Batching(2).plan(LENGTHS) == [[0, 1], [2, 3], [4]]


def test_a_token_budget_groups_similar_lengths() -> None:
    """9 and 8 fill 18 with padding; 5, 3, 2 fill 15."""
    assert Batching(64, 18).plan(LENGTHS) == [[1, 3], [4, 0, 2]]
    assert Batching(64, 8).plan(LENGTHS) == [[1], [3], [4], [0, 2]]  # a row above the budget is on its own
    assert Batching(64, 18).plan(LENGTHS, sequences_per_row=3) == [[1], [3], [4], [0, 2]]  # three sequences per row


def test_by_length_sorts_longest_first_and_is_stable() -> None:
    assert Batching(2).by_length([2, 9, 3, 9, 1, 3]) == [[1, 3], [2, 5], [0, 4]]
    assert Batching(2).by_length([4, 4, 4]) == Batching(2).plan([4, 4, 4])
    assert Batching(64, 18).by_length(LENGTHS) == Batching(64, 18).plan(LENGTHS)
    assert of_rank(0, 2, rows=1).by_length(LENGTHS) == [[1], [0], [2]]  # shares as in the next test
    assert of_rank(1, 2, rows=1).by_length(LENGTHS) == [[3], [4], []]


def test_the_longest_row_goes_to_the_rank_with_the_fewest_tokens() -> None:
    """9 | 8, then 5 to the eight, 3 to the nine, 2 to the twelve: 9 + 3 + 2 = 14 against 8 + 5 = 13."""
    assert balanced_shares(LENGTHS, 2) == [[0, 1, 2], [3, 4]]
    assert balanced_shares([4], 3) == [[0], [], []]


@pytest.mark.parametrize("settings", [{"rows": 1}, {"rows": 2}, {"tokens": 9}])
def test_all_ranks_have_the_same_number_of_passes_and_each_row_once(settings: dict[str, int]) -> None:
    plans = [of_rank(rank, 3, **settings).plan(LENGTHS) for rank in range(3)]
    assert len({len(plan) for plan in plans}) == 1
    assert sorted(row for plan in plans for rows in plan for row in rows) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("average", ["token", "sequence", "sequence_sum"])
@pytest.mark.parametrize("settings", [{"rows": 1}, {"tokens": 18}])
def test_shares_of_all_ranks_sum_to_the_batch_average(average: LossAverage, settings: dict[str, int]) -> None:
    """A masked average is the sum of the micro-batches' averages times their shares."""
    whole = batch(WITH_AN_EMPTY_RESPONSE)
    mask = whole.response_mask
    values = torch.arange(mask.numel(), dtype=torch.float64).reshape(mask.shape)
    total = 0.0
    for rank in range(4):
        for part in of_rank(rank, 4, **settings).micro_batches(whole, average=average):
            own, at = part.sequences(whole).response_mask, part.of(values)
            total += part.share * float(masked_average(at, own, average=average))
    assert total == pytest.approx(float(masked_average(values, mask, average=average)), rel=1e-6)


def test_a_token_budget_drops_unused_columns() -> None:
    whole = batch(LENGTHS)
    parts = list(Batching(64, 18).micro_batches(whole, average="token"))
    assert [part.width for part in parts] == [9, 5]
    assert [part.width for part in Batching(2).micro_batches(whole, average="token")] == [9, 9, 9]
    assert [part.rows.tolist() for part in parts] == [[1, 3], [4, 0, 2]]
    assert [part.share for part in parts] == pytest.approx([15 / 22, 7 / 22])


def test_micro_batches_of_selected_rows() -> None:
    """Rows 4, 0, 1 in that order, as in a PPO minibatch."""
    (first, second) = Batching(2).micro_batches(batch(LENGTHS), average="token", among=torch.tensor([4, 0, 1]))
    assert (first.rows.tolist(), second.rows.tolist()) == ([4, 0], [1])
    assert (first.share, second.share) == pytest.approx((6 / 14, 8 / 14))


def test_minibatches_cover_every_row_once_per_epoch() -> None:
    """Five rows in three steps, for two epochs; the order depends on the seed."""

    def steps(seed: int) -> list[list[int]]:
        device = torch.device("cpu")
        return [rows.tolist() for rows in shuffled_minibatches(5, epochs=2, minibatches=3, seed=[seed], device=device)]

    found = steps(0)
    assert [len(rows) for rows in found] == [2, 2, 1, 2, 2, 1]
    for epoch in (found[:3], found[3:]):
        assert sorted(row for rows in epoch for row in rows) == [0, 1, 2, 3, 4]
    assert found == steps(0) != steps(1)
