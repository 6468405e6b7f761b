"""Which rows pass together, on which rank: hand-worked plans, and shares that make up the whole."""

from __future__ import annotations

import pytest
import torch

from rlgaf_ray.training.batching import Batching, deal
from rlgaf_ray.training.distributed import Group
from rlgaf_ray.types import SequenceBatch

LENGTHS = [3, 9, 2, 8, 5]


def batch(lengths: list[int], num_prompt: int = 1) -> SequenceBatch:
    positions = torch.arange(max(lengths))
    present = positions < torch.tensor(lengths)[:, None]
    return SequenceBatch(present.long() * 7, present.long(), present & (positions >= num_prompt))


def of_rank(rank: int, size: int, **settings: int) -> Batching:
    return Batching(settings.get("rows", 64), settings.get("tokens"), Group(rank, size))


def test_alone_and_without_a_budget_rows_stay_in_order() -> None:
    assert Batching(2).plan(LENGTHS) == [[0, 1], [2, 3], [4]]


def test_a_budget_puts_like_lengths_together() -> None:
    """9 and 8 fill 18 with padding; 5, 3, 2 fill 15."""
    assert Batching(64, 18).plan(LENGTHS) == [[1, 3], [4, 0, 2]]
    assert Batching(64, 8).plan(LENGTHS) == [[1], [3], [4], [0, 2]]  # what is longer than the budget goes alone
    assert Batching(64, 18).plan(LENGTHS, per_row=3) == [[1], [3], [4], [0, 2]]  # each row stands for three sequences


def test_the_longest_go_to_the_rank_with_the_fewest_tokens() -> None:
    """9 | 8, then 5 to the eight, 3 to the nine, 2 to the twelve: 9 + 3 + 2 = 14 against 8 + 5 = 13."""
    assert deal(LENGTHS, 2) == [[0, 1, 2], [3, 4]]
    assert deal([4], 3) == [[0], [], []]


@pytest.mark.parametrize("settings", [{"rows": 1}, {"rows": 2}, {"tokens": 9}])
def test_ranks_have_as_many_passes_and_each_row_once(settings: dict[str, int]) -> None:
    plans = [of_rank(rank, 3, **settings).plan(LENGTHS) for rank in range(3)]
    assert len({len(plan) for plan in plans}) == 1
    assert sorted(row for plan in plans for rows in plan for row in rows) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("average", ["token", "sequence"])
@pytest.mark.parametrize("settings", [{"rows": 1}, {"tokens": 18}])
def test_shares_of_all_ranks_make_one_average(average: str, settings: dict[str, int]) -> None:
    """A masked average is the sum of the micro-batches' averages times their shares."""
    whole = batch(LENGTHS)
    mask = whole.response_mask
    values = torch.arange(mask.numel(), dtype=torch.float64).reshape(mask.shape)
    total = 0.0
    for rank in range(4):
        for part in of_rank(rank, 4, **settings).micro_batches(whole, average=average):
            own, at = part.sequences(whole).response_mask, part.of(values)
            rows = (at * own).sum(1) / own.sum(1)
            total += part.share * float(at[own].mean() if average == "token" else rows.mean())
    rows = (values * mask).sum(1) / mask.sum(1)
    assert total == pytest.approx(float(values[mask].mean() if average == "token" else rows.mean()), rel=1e-6)


def test_a_budget_cuts_the_columns_that_no_row_reaches() -> None:
    whole = batch(LENGTHS)
    parts = list(Batching(64, 18).micro_batches(whole, average="token"))
    assert [part.width for part in parts] == [9, 5]
    assert [part.width for part in Batching(2).micro_batches(whole, average="token")] == [9, 9, 9]
    assert [part.rows.tolist() for part in parts] == [[1, 3], [4, 0, 2]]
    assert [part.share for part in parts] == pytest.approx([15 / 22, 7 / 22])


def test_micro_batches_among_some_rows() -> None:
    """Rows 4, 0, 1 in that order, as PPO shuffles them."""
    (first, second) = Batching(2).micro_batches(batch(LENGTHS), average="token", among=torch.tensor([4, 0, 1]))
    assert (first.rows.tolist(), second.rows.tolist()) == ([4, 0], [1])
    assert (first.share, second.share) == pytest.approx((6 / 14, 8 / 14))
