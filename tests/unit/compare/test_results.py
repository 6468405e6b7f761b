"""Statistics and tables of a comparison, on numbers with known results."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from rlgaf_ray.compare.decoding import Decoding, curves
from rlgaf_ray.compare.measuring import Measured
from rlgaf_ray.compare.results import Row, best_decoding, table
from rlgaf_ray.compare.statistics import Difference, bootstrap, holm
from rlgaf_ray.compare.trial import Trial
from rlgaf_ray.config.compare import MethodName
from rlgaf_ray.evaluation.answers import AnswerMeasure
from rlgaf_ray.report.quality import at_level


def measured(temperature: float, quality: float, entropy: float | None, each: list[float] | None = None) -> Measured:
    return Measured(temperature, quality, each, entropy, distinct_2=temperature / 2, metrics={})


def trial(method: MethodName, replicate: int, lift: float, *, chosen: bool = False) -> Trial:
    """Make a trial: temperature 0.5 is better on test prompts (0.6 against 0.4), temperature 1 on validation ones."""
    noise = 0.01 * (replicate % 3 - 1)
    test = [(1.0, 0.4 + lift + noise), (0.5, 0.6 + lift + noise)]
    validation = [(1.0, 0.5 + lift), (0.5, 0.3 + lift)]
    parts = {
        "test": [measured(t, q, None if chosen else 10 * t, [q, q]) for t, q in test],
        "validation": [measured(t, q, None if chosen else 10 * t) for t, q in validation],
    }
    return Trial(method, replicate, parts, 640, {"training": 2.0}, 4 if chosen else 1, 100)  # type: ignore[arg-type]


def test_differences_are_paired_and_corrected() -> None:
    found = Difference.of([0.1, 0.2, 0.3])
    assert (found.mean, found.count) == (pytest.approx(0.2), 3)
    assert (found.low, found.high) == pytest.approx((0.2 - 4.303 * 0.1 / 3**0.5, 0.2 + 4.303 * 0.1 / 3**0.5), abs=1e-3)
    assert found.p == pytest.approx(0.0742, abs=1e-4)
    assert math.isnan(Difference.of([0.1]).p)
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    corrected = holm([0.01, float("nan"), 0.03])
    assert corrected[0] == pytest.approx(0.02) and math.isnan(corrected[1]) and corrected[2] == pytest.approx(0.03)


def test_the_bootstrap_resamples_replicates_and_prompts() -> None:
    generator = np.random.default_rng(0)
    gaps = [generator.normal(0.2, 1.0, 400) for _ in range(10)]
    low, high = bootstrap(gaps)
    assert low < 0.2 < high and high - low == pytest.approx(2 * 1.96 / 4000**0.5 * 3**0.5, rel=0.25)


def test_the_bootstrap_keeps_what_prompts_have_in_common() -> None:
    common = np.random.default_rng(0).normal(0.0, 1.0, 400)
    low, high = bootstrap([common] * 10)
    assert high - low == pytest.approx(2 * 1.96 / 400**0.5, rel=0.1)


def test_a_curve_is_not_extrapolated() -> None:
    points = [(2.0, 0.4), (1.0, 0.6)]
    assert at_level(points, 1.5) == pytest.approx(0.5)
    assert at_level(points, 0.9) is None and at_level(points, 2.1) is None


def test_the_decoding_is_selected_on_validation_prompts() -> None:
    assert best_decoding({0: trial("sft", 0, 0.0)}) == Decoding(1.0)


def point(quality: float, entropy: float, **decoding: float) -> Measured:
    made = Decoding(**decoding)
    return Measured(made.temperature, quality, None, entropy, 0.5, {}, made.top_p, made.min_p)


def test_truncated_decodings_can_be_best_and_form_their_own_curves() -> None:
    plain, cold = point(0.4, 10.0), point(0.6, 4.0, temperature=0.5)
    nucleus, floor = point(0.9, 6.0, top_p=0.8), point(0.5, 7.0, min_p=0.1)
    points = [plain, cold, nucleus, floor]
    assert curves(points) == [[plain, cold], [plain, nucleus], [plain, floor]]
    assert curves(points[:2]) == [[plain, cold]]
    assert [str(each.decoding) for each in points] == ["T 1", "T 0.5", "top-p 0.8", "min-p 0.1"]
    parts = {"validation": points, "test": points}
    base = Trial("sft", 0, parts, 0, {"training": 0.0}, 1, 100)  # type: ignore[arg-type]
    assert best_decoding({0: base}) == Decoding(top_p=0.8)
    own = [point(0.8, 8.0), point(0.7, 5.0, temperature=0.5)]
    other = Trial("rlgaf", 0, {"validation": own, "test": own}, 0, {"training": 0.0}, 1, 100)
    level = rows(base, other, methods=["sft", "rlgaf"])["rlgaf"].level_difference
    # Baseline at 8 nats: 0.6 - 0.2 * 4 / 6 over temperature, 0.65 over top-p, 0.4667 over min-p.
    assert level is not None and level.mean == pytest.approx(0.8 - 0.65)


def of(method: MethodName, replicate: int, *points: Measured) -> Trial:
    return Trial(method, replicate, {"validation": [*points], "test": [*points]}, 0, {"training": 0.0}, 1, 100)


def test_the_baseline_is_compared_at_its_highest_entropy_if_the_method_exceeds_it() -> None:
    base = [of("sft", each, point(0.5, 8.0), point(0.7, 4.0, temperature=0.5)) for each in range(2)]
    wide = [of("rlgaf", each, point(0.2, 10.0), point(0.6, 6.0, temperature=0.5)) for each in range(2)]
    found = rows(*base, *wide, methods=["sft", "rlgaf"])["rlgaf"].level_difference
    assert found is not None and found.mean == pytest.approx(0.4 - 0.5)  # at 8 nats


def test_there_is_no_comparison_if_the_curves_of_a_replicate_do_not_overlap() -> None:
    base = [of("sft", each, point(0.5, 8.0), point(0.7, 4.0, temperature=0.5)) for each in range(2)]
    narrow = [of("rlgaf", each, point(0.9, [6.0, 3.0][each]), point(0.9, 1.0, temperature=0.5)) for each in range(2)]
    assert rows(*base, *narrow, methods=["sft", "rlgaf"])["rlgaf"].level_difference is None


def test_a_baseline_that_selects_among_candidates_is_compared_at_equal_distinct_2() -> None:
    trials = [trial("best_of_4", 0, 0.0, chosen=True), trial("rlgaf", 0, 0.1)]
    found = {row.name: row for row in table(trials, ["best_of_4", "rlgaf"], "best_of_4")}["rlgaf"]
    assert found.level == "distinct_2" and found.level_difference is not None
    assert found.level_difference.mean == pytest.approx(0.1)


def rows(*trials: Trial, methods: list[MethodName]) -> dict[str, Row]:
    return {row.name: row for row in table(trials, methods, "sft")}


def test_methods_against_the_baseline() -> None:
    numbers = range(6)
    trials = [trial("sft", number, 0.0) for number in numbers] + [trial("rlgaf", number, 0.1) for number in numbers]
    trials += [trial("best_of_4", number, 0.05, chosen=True) for number in numbers]
    found = rows(*trials, methods=["sft", "best_of_4", "rlgaf"])
    assert list(found) == ["sft", "best_of_4", "rlgaf"]
    rlgaf, best = found["rlgaf"], found["best_of_4"]
    assert (rlgaf.best.temperature, rlgaf.at_one, rlgaf.entropy_at_one) == (1.0, pytest.approx(0.5), 10.0)
    assert rlgaf.best_difference.mean == pytest.approx(0.1) and rlgaf.p < 1e-6
    assert rlgaf.interval == pytest.approx((0.1, 0.1))
    assert rlgaf.level == "entropy" and rlgaf.level_difference is not None
    assert rlgaf.level_difference.mean == pytest.approx(0.1)
    assert best.level == "distinct_2" and best.entropy_at_one is None and best.candidates == 4
    assert found["sft"].best_difference.mean == 0 and math.isnan(found["sft"].p)


def test_missing_trials_are_skipped() -> None:
    found = rows(trial("rlgaf", 0, 0.1), methods=["sft", "rlgaf"])
    assert list(found) == ["rlgaf"] and math.isnan(found["rlgaf"].best_difference.mean)
    found = rows(trial("sft", 0, 0.0), trial("rlgaf", 1, 0.1), methods=["sft", "rlgaf"])
    assert math.isnan(found["rlgaf"].best_difference.mean) and found["rlgaf"].level_difference is None


def test_a_trial_survives_saving_and_loading(tmp_path: Path) -> None:
    one = trial("rlgaf", 3, 0.1)
    one.save(tmp_path / "trial.json")
    assert Trial.load(tmp_path / "trial.json") == one


def test_a_measure_without_repeated_metrics_adds_none() -> None:
    assert AnswerMeasure([["Rome"]], [""]).repeated([["Rome", "Paris"]], np.zeros((1, 2))) == {}
