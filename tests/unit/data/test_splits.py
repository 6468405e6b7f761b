from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from rlgaf_ray.config.task import SplitSizes
from rlgaf_ray.data.reviews import Reviews
from rlgaf_ray.data.splits import Splits, split_reviews

SIZES = SplitSizes(generator_warmup=20, demonstrations=10, discriminator_warmup=6, judge=8, held_out=7)


def make_reviews(num_positive: int = 40, num_negative: int = 30) -> Reviews:
    labels = np.repeat([0, 1], [num_negative, num_positive])
    return Reviews([f"review {row}" for row in range(len(labels))], labels)


def parts(splits: Splits) -> dict[str, np.ndarray]:
    return {name: getattr(splits, name) for name in SplitSizes.model_fields}


def test_parts_are_disjoint_and_half_positive() -> None:
    reviews = make_reviews()
    rows = parts(split_reviews(reviews, SIZES))
    assert {name: len(members) for name, members in rows.items()} == dict(SIZES)
    everything = np.concatenate(list(rows.values()))
    assert len(np.unique(everything)) == 51
    assert {name: int(reviews.labels[members].sum()) for name, members in rows.items()} == {
        "generator_warmup": 10,
        "demonstrations": 5,
        "discriminator_warmup": 3,
        "judge": 4,
        "held_out": 3,
    }


def test_the_same_reviews_give_the_same_parts_whatever_numpys_global_seed() -> None:
    np.random.seed(1)
    first = split_reviews(make_reviews(), SIZES)
    np.random.seed(2)
    second = split_reviews(make_reviews(), SIZES)
    assert first.checksum == second.checksum
    for name, members in parts(first).items():
        np.testing.assert_array_equal(members, getattr(second, name))


def test_the_checksum_sees_one_changed_letter_one_changed_label_and_one_moved_review() -> None:
    reviews = make_reviews()
    splits = split_reviews(reviews, SIZES)
    row = int(splits.judge[0])
    texts = list(reviews.texts)
    texts[row] += "!"
    labels = reviews.labels.copy()
    labels[[row, int(splits.judge[np.flatnonzero(labels[splits.judge] != labels[row])[0]])]] = [1, 0]
    checksums = {
        splits.checksum,
        split_reviews(Reviews(texts, reviews.labels), SIZES).checksum,
        split_reviews(dataclasses.replace(reviews, labels=1 - labels), SIZES).checksum,
        split_reviews(reviews, SIZES.model_copy(update={"judge": 6})).checksum,
    }
    assert len(checksums) == 4


def test_too_few_rows_says_what_was_asked_what_is_there_and_which_keys_to_lower() -> None:
    message = (
        r"ask for 25 positive and 26 negative reviews, but the data has 40 positive and 25 negative: lower some of "
        r"task\.imdb\.splits\.generator_warmup=20, task\.imdb\.splits\.demonstrations=10, .*"
        r"task\.imdb\.splits\.held_out=7"
    )
    with pytest.raises(ValueError, match=message):
        split_reviews(make_reviews(num_negative=25), SIZES)
    assert len(split_reviews(make_reviews(num_positive=25, num_negative=26), SIZES).judge) == 8


def test_the_default_parts_fit_the_reviews_that_remain_without_duplicates() -> None:
    splits = split_reviews(make_reviews(num_positive=12_471, num_negative=12_431), SplitSizes())
    assert len(splits.held_out) // 2 >= 2000
