from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from rlgaf_ray.config.task import SplitSizes
from rlgaf_ray.data.reviews import Reviews
from rlgaf_ray.data.splits import SHARES, Splits, opening, position, split_reviews
from rlgaf_ray.errors import UserError

ALL = SplitSizes()


def make_reviews(num_positive: int = 400, num_negative: int = 300) -> Reviews:
    labels = np.repeat([0, 1], [num_negative, num_positive])
    return Reviews([f"review {row}" for row in range(len(labels))], labels)


def parts(splits: Splits) -> dict[str, np.ndarray]:
    return {name: getattr(splits, name) for name in SHARES}


def test_parts_are_a_partition_with_the_right_shares() -> None:
    rows = parts(split_reviews(make_reviews(7000, 7000), ALL))
    assert sorted(np.concatenate(list(rows.values())).tolist()) == list(range(14_000))
    for name, members in rows.items():
        deviation = np.sqrt(14_000 * SHARES[name] * (1 - SHARES[name]))
        assert abs(len(members) - 14_000 * SHARES[name]) < 4 * deviation, name
    assert sum(SHARES.values()) == pytest.approx(1.0)
    assert dict(ALL).keys() == SHARES.keys()


def test_the_part_of_a_review_depends_only_on_its_text() -> None:
    reviews = make_reviews()
    part_of = {
        reviews.texts[row]: name for name, members in parts(split_reviews(reviews, ALL)).items() for row in members
    }
    order = np.random.default_rng(0).permutation(700)[:500]
    fewer = Reviews([reviews.texts[row] for row in order], reviews.labels[order])
    for name, members in parts(split_reviews(fewer, ALL)).items():
        assert {part_of[fewer.texts[row]] for row in members} == {name}


def test_the_position_ignores_punctuation_case_and_the_rest() -> None:
    text = "This movie, which I saw in 1999 - twice - isn't a masterpiece (but it comes close)."
    words = "this movie which i saw in 1999 twice isn t a masterpiece"
    assert opening(text) == opening(text.upper()) == opening(words + " and more") == words
    assert position(text) == position(words) != position("That " + text)
    assert 0 <= position(text) < 1


def test_a_size_keeps_the_first_reviews_half_positive() -> None:
    reviews = make_reviews()
    whole, few = split_reviews(reviews, ALL), split_reviews(reviews, SplitSizes(base=7, test=4))
    assert len(few.base) == 7
    assert int(reviews.labels[few.base].sum()) == 3
    positive = [row for row in whole.base if reviews.labels[row] == 1]
    assert [row for row in few.base if reviews.labels[row] == 1] == positive[:3]
    assert len(few.test) == 4
    np.testing.assert_array_equal(few.demonstrations, whole.demonstrations)


def test_the_checksum_depends_on_text_labels_and_sizes() -> None:
    reviews = make_reviews()
    splits = split_reviews(reviews, ALL)
    row = int(splits.judge_test[0])
    texts = list(reviews.texts)
    texts[row] += "!"
    checksums = {
        splits.checksum,
        split_reviews(Reviews(texts, reviews.labels), ALL).checksum,
        split_reviews(dataclasses.replace(reviews, labels=1 - reviews.labels), ALL).checksum,
        split_reviews(reviews, SplitSizes(judge_test=6)).checksum,
    }
    assert len(checksums) == 4
    order = np.random.default_rng(1).permutation(700)
    moved = Reviews([reviews.texts[row] for row in order], reviews.labels[order])
    assert split_reviews(moved, ALL).checksum == splits.checksum


def test_too_few_reviews_raise_with_the_empty_part() -> None:
    with pytest.raises(
        UserError, match=r"the 3 reviews are too few: none of sentiment \d falls into the part \w+ \(\d+% of them"
    ):
        split_reviews(make_reviews(2, 1), ALL)
