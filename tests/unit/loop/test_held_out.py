from __future__ import annotations

import json

import numpy as np
import pytest

from rlgaf_ray.errors import UserError
from rlgaf_ray.loop.held_out import HeldOutAccuracy, contrast_without, split_held_out
from rlgaf_ray.types import Demonstration


def demonstration(*prompt: int) -> Demonstration:
    return Demonstration(np.array(prompt, np.int32), np.array([9], np.int32))


def test_the_split_is_disjoint_and_deterministic() -> None:
    trained, held_out = split_held_out(100, 30)
    assert len(held_out) == 30
    assert sorted([*trained, *held_out]) == list(range(100))
    assert trained.tolist() == sorted(trained)
    assert held_out.tolist() != sorted(held_out)  # drawn at random
    assert split_held_out(100, 30)[1].tolist() == held_out.tolist()


def test_without_held_out_rows_all_rows_are_trained_on() -> None:
    trained, held_out = split_held_out(5, 0)
    assert (trained.tolist(), held_out.tolist()) == ([0, 1, 2, 3, 4], [])


def test_too_many_held_out_rows_are_rejected() -> None:
    with pytest.raises(UserError, match=r"held_out=5 needs 10 demonstrations .* only 9: .* to at most 4"):
        split_held_out(9, 5)


def test_contrast_rows_with_a_held_out_prompt_are_dropped() -> None:
    demonstrations = [demonstration(1), demonstration(2), demonstration(2), demonstration(3)]
    contrast = [demonstration(prompt) for prompt in (1, 2, 3, 4)]
    kept = contrast_without(np.array([0, 1]), demonstrations, contrast)  # prompt 2 has another demonstration
    assert [item.prompt_ids.tolist() for item in kept] == [[2], [3], [4]]
    assert contrast_without(np.array([], int), demonstrations, contrast) is contrast


def test_accuracy_by_hand() -> None:
    """Medians 2 and -4: the threshold is -1."""
    measure = HeldOutAccuracy(np.arange(4))
    assert measure.rows_of(1) == [0, 1, 2, 3]
    found = measure.observe([1.0, 3.0, -1.5, 4.0], [-1.0, -3.0, 1.0, 0.0, -5.0, -5.0, -5.0, -5.0])
    assert found["discriminator/held_out_accuracy"] == pytest.approx((3 / 4 + 6 / 8) / 2)
    assert found["discriminator/held_out_logit_gap"] == pytest.approx(6.5 / 4 - (-23 / 8))


def test_accuracy_depends_on_the_order_of_logits_and_not_on_their_level() -> None:
    def accuracy(real: list[float], fake: list[float]) -> float:
        return HeldOutAccuracy(np.arange(2)).observe(real, fake)["discriminator/held_out_accuracy"]

    assert accuracy([0.6, 0.8], [0.3, 0.4]) == accuracy([-5.4, -5.2], [-5.7, -5.6]) == 1.0
    assert accuracy([0.3, 0.4], [0.6, 0.8]) == 0.0


def test_rows_are_scored_round_robin_and_averaged_over_one_round() -> None:
    """40 rows are 3 iterations of 16."""
    measure = HeldOutAccuracy(np.arange(100, 140))
    turns, found = [], []
    for iteration, sign in enumerate((1.0, 1.0, -1.0, -1.0, -1.0), start=1):
        turns.append(measure.rows_of(iteration))
        found.append(measure.observe([sign] * 16, [-sign] * 8))
    assert turns[0] == list(range(100, 116))
    assert turns[2] == [*range(132, 140), *range(100, 108)]
    assert [row for turn in turns for row in turn] == [*range(100, 140), *range(100, 140)]
    assert [row["discriminator/held_out_accuracy"] for row in found] == pytest.approx([1, 1, 2 / 3, 1 / 3, 0])
    assert [row["discriminator/held_out_logit_gap"] for row in found] == pytest.approx([2, 2, 2 / 3, -2 / 3, -2])


def test_a_drift_of_all_logits_does_not_change_the_accuracy() -> None:
    measure, noise = HeldOutAccuracy(np.arange(128)), np.random.default_rng(0)
    for level in np.linspace(0.0, -20.0, 8):
        found = measure.observe(*(list(level + noise.normal(size=count)) for count in (16, 64)))
    assert found["discriminator/held_out_accuracy"] == pytest.approx(0.5, abs=0.08)


def test_the_state_is_restored() -> None:
    first, second = (HeldOutAccuracy(np.arange(40)) for _ in range(2))
    first.observe([0.5] * 16, [0.1] * 8)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.observe([-1.0] * 16, [1.0] * 8) == first.observe([-1.0] * 16, [1.0] * 8)


def test_the_overfit_gap_by_hand() -> None:
    """Trained rows are above 7 of 8 pairs and equal in the other; held-out ones above 3 and equal in 1."""
    measure = HeldOutAccuracy(np.array([7, 8]), np.array([1, 2, 3, 4]))
    assert measure.rows_of(1)[:2] == [7, 8]
    fake = [0.0, 1.0, 2.0, 3.0]
    found = measure.observe([1.0, 2.5, 9.0, 3.0], fake)
    assert found["discriminator/overfit_gap"] == pytest.approx(7.5 / 8 - 4.5 / 8)
    alone = HeldOutAccuracy(np.array([7, 8])).observe([1.0, 2.5], fake)
    assert found == alone | {"discriminator/overfit_gap": found["discriminator/overfit_gap"]}


def test_trained_rows_are_scored_round_robin_with_the_held_out_ones() -> None:
    measure = HeldOutAccuracy(np.arange(100, 140), np.arange(60))
    turns = [measure.rows_of(iteration) for iteration in range(1, 16)]
    assert all(
        len(turn) == 32 and turn[:16] == HeldOutAccuracy(measure.rows).rows_of(n) for n, turn in enumerate(turns, 1)
    )
    trained = [row for turn in turns for row in turn[16:]]
    assert trained[:60] == trained[60:120] and sorted(trained[:60]) == list(range(60)) != trained[:60]


def test_the_gap_is_averaged_over_one_round_of_finite_logits() -> None:
    measure = HeldOutAccuracy(np.arange(100, 140), np.arange(60))  # 3 iterations
    gaps = []
    for trained in (1.0, 1.0, -1.0, float("nan"), -1.0):
        found = measure.observe([0.5] * 16 + [trained] * 16, [0.0] * 8)
        gaps.append(found["discriminator/overfit_gap"])
    assert gaps == pytest.approx([0, 0, -1 / 3, -1 / 3, -2 / 3])


def test_readings_without_a_gap_are_dropped_once_it_is_measured() -> None:
    plain, measure = HeldOutAccuracy(np.arange(40)), HeldOutAccuracy(np.arange(40), np.arange(60))
    plain.observe([-1.0] * 16, [1.0] * 8)
    measure.load_state_dict(json.loads(json.dumps(plain.state_dict())))
    found = measure.observe([1.0] * 16 + [3.0] * 16, [2.0] * 8)
    assert (found["discriminator/held_out_accuracy"], found["discriminator/overfit_gap"]) == (0.0, 1.0)
    again = HeldOutAccuracy(np.arange(40), np.arange(60))
    again.load_state_dict(json.loads(json.dumps(measure.state_dict())))
    assert again.readings == measure.readings
