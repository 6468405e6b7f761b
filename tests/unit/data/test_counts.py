from __future__ import annotations

import pytest

from rlgaf_ray.data.counts import RowCounts
from rlgaf_ray.errors import UserError

COUNTS = RowCounts(
    {"base": 0, "demonstrations": 90, "validation": 10, "test": 20},
    {"demonstrations": {"too long": 1000, "without a prompt": 8}, "validation": {}, "test": {"too long": 72}},
    {"rows that repeat an earlier one": 3, "rows with an empty response": 0},
    rejected=7,
)


def test_sentence_and_record() -> None:
    assert COUNTS.sentence() == (
        "1,080 of 1,200 rows (90%) left out: 1,072 too long, 8 without a prompt; parts: demonstrations 90 (75%), "
        "validation 10 (8%), test 20 (17%); rows that repeat an earlier one: 3"
    )
    assert COUNTS.described() == {
        "read": 1200,
        "used": 120,
        "dropped": {"too long": 1072, "without a prompt": 8},
        "parts": {
            "base": {"used": 0, "dropped": 0, "share": 0.0},
            "demonstrations": {"used": 90, "dropped": 1008, "share": 0.75},
            "validation": {"used": 10, "dropped": 0, "share": 0.0833},
            "test": {"used": 20, "dropped": 72, "share": 0.1667},
        },
        "rejected": 7,
        "remarks": {"rows that repeat an earlier one": 3},
    }
    assert RowCounts({"test": 3}, {}).sentence() == ""


def test_a_dropped_share_above_the_limit_raises() -> None:
    COUNTS.refuse_above(0.9, [["base", "demonstrations", "validation", "test"]])
    COUNTS.refuse_above(0.0, [["validation"]])
    with pytest.raises(
        UserError, match=r"^1,080 of 1,200 rows \(90%\) left out: 1,072 too long, .* task.max_dropped_share=0.8"
    ):
        COUNTS.refuse_above(0.8, [["base", "demonstrations", "validation", "test"]])
    with pytest.raises(UserError, match=r"^72 of 92 rows of the part test \(78%\) left out: 72 too long, a larger"):
        COUNTS.refuse_above(0.75, [["validation"], ["test"]])
