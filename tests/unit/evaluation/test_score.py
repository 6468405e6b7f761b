from __future__ import annotations

import math

import pytest

from rlgaf_ray.evaluation.score import WORST, evaluation_score, sweep_score


def answers(f1: float, diversity: float = 1.0, perplexity: float = 1.0) -> dict[str, float]:
    return {"eval/f1": f1, "eval/distinct_2_ratio": diversity, "eval/perplexity_ratio": perplexity}


def sentiment(closeness: float) -> dict[str, float]:
    return {"eval/closeness": closeness, "eval/distinct_2_ratio": 0.5, "eval/perplexity_ratio": 2.0}


@pytest.mark.parametrize(
    ("metrics", "quality", "expected"),
    [
        (sentiment(-0.2), "eval/closeness", -0.2),
        (sentiment(math.nan), "eval/closeness", WORST),
        (answers(80.0, 0.9, 1.25), "eval/f1", 0.8 * 0.9 * 0.8),
        # Higher diversity or lower perplexity than the SFT model's adds nothing,
        (answers(50.0, 1.2, 0.5), "eval/f1", 0.5),
        (answers(80.0, 1.2, 2.0), "eval/f1", 0.4),  # and cannot offset a lower quality
        (answers(math.nan), "eval/f1", WORST),
        (answers(100.0, 1.0, math.inf), "eval/f1", WORST),
        ({"eval/rhymes": 7.0}, "eval/rhymes", 7.0),  # metric of a custom task, unchanged
        ({"eval/rhymes": -2000.0}, "eval/rhymes", -2000.0),
        ({"eval/perplexity_ratio": 1.5}, "eval/perplexity_ratio", -1.5),  # lower is better
        ({"eval/f1": 80.0}, "eval/f1", WORST),
        ({}, "eval/rhymes", -math.inf),
    ],
)
def test_one_evaluation(metrics: dict[str, float], quality: str, expected: float) -> None:
    assert evaluation_score(metrics, quality) == pytest.approx(expected)


def test_the_last_third_counts() -> None:
    qualities = {0: 0.0, 75: -0.8, 150: -0.6, 200: -0.1, 225: -0.4, 300: -0.2}
    evaluations = [(iteration, sentiment(quality)) for iteration, quality in qualities.items()]
    # The mean over iterations 225 and 300; the last third starts after iteration 200.
    assert sweep_score(evaluations, "eval/closeness") == pytest.approx(-0.3)
    assert sweep_score(evaluations[:3], "eval/closeness") == pytest.approx(-0.6)  # of 150; 75 is too early
    assert sweep_score(evaluations[:2], "eval/closeness") == pytest.approx(-0.8)


def test_an_evaluation_of_the_sft_model_only_has_no_score() -> None:
    with pytest.raises(AssertionError, match="no evaluation after iteration 0"):
        sweep_score([(0, sentiment(0.0))], "eval/closeness")
