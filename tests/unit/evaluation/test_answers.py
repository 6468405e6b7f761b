from __future__ import annotations

import pytest

from rlgaf_ray.evaluation.answers import answer_metrics, exact_match, f1, normalize_answer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Broncos.", "broncos"),
        ("  A  man, a plan;\tan  apple ", "man plan apple"),
        ("U.S.", "us"),
        ("theatre", "theatre"),  # only full words are articles
        ("the", ""),
        ("twenty-one", "twentyone"),
    ],
)
def test_normalize(text, expected):
    assert normalize_answer(text) == expected


@pytest.mark.parametrize(
    ("answer", "references", "expected_exact", "expected_f1"),
    [
        ("Denver Broncos", ["Denver Broncos", "The Broncos"], 1.0, 1.0),
        ("the Denver Broncos!", ["denver broncos"], 1.0, 1.0),
        ("Broncos of Denver", ["Denver Broncos"], 0.0, 2 * 2 / 5),
        ("gold", ["gold anniversary", "golden"], 0.0, 2 / 3),
        ("gold gold", ["gold"], 0.0, 2 / 3),  # counts the occurrences common to both
        ("Paris", ["London"], 0.0, 0.0),
        ("", [], 1.0, 1.0),
        ("the", [], 1.0, 1.0),  # empty after normalisation
        ("Paris", [], 0.0, 0.0),
        ("", ["Paris"], 0.0, 0.0),
    ],
)
def test_exact_match_and_f1(answer, references, expected_exact, expected_f1):
    assert exact_match(answer, references) == expected_exact
    assert f1(answer, references) == pytest.approx(expected_f1)


def test_all_metrics_of_four_questions():
    metrics = answer_metrics(
        ["Denver Broncos", "in the year 1999", "", "Paris"],
        [["Denver Broncos"], ["1999"], [], []],
        ["the Denver Broncos won", "It ended in 1999.", "nothing", "not in Parisian"],
    )
    # F1 of the second: 2 * 1 / (3 + 1). Lengths 2, 4, 0, 1 against 2, 1, 0, 0: sorted, (0 + 1 + 1 + 2) / 4 apart.
    assert metrics == pytest.approx(
        {
            "eval/exact_match": 50.0,
            "eval/exact_match_has_answer": 50.0,
            "eval/exact_match_no_answer": 50.0,
            "eval/f1": 62.5,
            "eval/f1_has_answer": 75.0,
            "eval/f1_no_answer": 50.0,
            "eval/answer_words": 7 / 4,
            "eval/length_distance": 1.0,
            "eval/in_context_share": 0.25,
        }
    )
