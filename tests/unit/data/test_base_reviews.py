from __future__ import annotations

import numpy as np
import pytest

from rlgaf_ray.data.base_reviews import FINGERPRINTS, fingerprint, refuse_base_reviews
from rlgaf_ray.errors import UserError


def test_rows_that_begin_like_a_training_review_raise(monkeypatch, tmp_path) -> None:
    read = "I went to see this film with my whole family last Sunday, and what a film it was!"
    path = tmp_path / "reviews.npy"
    np.save(path, np.array([fingerprint(read)], np.uint64))
    monkeypatch.setattr("rlgaf_ray.data.base_reviews.FINGERPRINTS", path)
    refuse_base_reviews([("I went to see this film with my whole", " family last Monday"), ("", "another text")])
    with pytest.raises(UserError, match=r"4 rows \(2, 3, 4, 5\) begin like reviews that model\.generator=film-rev"):
        refuse_base_reviews(
            [
                ("", "other"),
                ("", read.upper()),
                (read[:9], read[9:57] + " Sunday - and what nobody had read before"),  # split within a word
                (read[:6], read[7:]),  # split between two words
                ("Write a review:", read),
            ]
        )


def test_the_fingerprints_are_sorted_and_distinct() -> None:
    known = np.load(FINGERPRINTS)
    assert known.dtype == np.uint64
    assert (np.diff(known.astype(object)) > 0).mean() > 0.99  # a few reviews have the same opening
