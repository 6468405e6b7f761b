from __future__ import annotations

import math

import pytest

from rlgaf_ray.evaluation.score import stability, stability_score


def row(quality: float, diversity: float = 1.0, perplexity: float = 1.0, *, name: str = "eval/gap_closed"):
    return {name: quality, "eval/distinct_2_ratio": diversity, "eval/perplexity_ratio": perplexity}


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        (row(0.8, 0.9, 1.25), 0.8 * 0.9 * 0.8),
        (row(1.3), 1.0),  # exaggeration earns nothing
        (row(-0.2), 0.0),
        (row(0.5, 1.2, 0.5), 0.5),  # nor does more diversity or a lower perplexity than the SFT model's
        (row(1.3, 0.5, 1.0), 0.5),  # and none of them pays for a loss in another
        (row(80.0, 0.5, 2.0, name="eval/f1"), 0.8 * 0.5 * 0.5),
        (row(math.nan), 0.0),
        (row(1.0, 1.0, math.inf), 0.0),
    ],
)
def test_one_evaluation(metrics: dict[str, float], expected: float) -> None:
    assert stability(metrics) == pytest.approx(expected)


def test_the_last_third_counts() -> None:
    evaluations = [(0, row(1.0)), (75, row(0.2)), (150, row(0.4)), (200, row(0.9)), (225, row(0.6)), (300, row(0.8))]
    assert stability_score(evaluations) == pytest.approx(0.7)  # of 225 and 300; 200 is two thirds, and before them
    assert stability_score(evaluations[:3]) == pytest.approx(0.4)  # of 150: 75 lies in the first half
    assert stability_score(evaluations[:2]) == pytest.approx(0.2)


def test_the_sft_model_alone_has_no_score() -> None:
    with pytest.raises(AssertionError, match="no evaluation after iteration 0"):
        stability_score([(0, row(1.0))])
