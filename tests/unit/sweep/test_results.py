from __future__ import annotations

import math
from dataclasses import replace

import pytest

from rlgaf_ray.config import load_config
from rlgaf_ray.sweep.results import TrialResult, best_of, ranked, read_result

CONFIG = load_config(None, ["run.iterations=100", "sweep.space.run.seed.grid=[0, 1]"])


def read(report: dict[str, object], error: str | None = None) -> TrialResult:
    return read_result(CONFIG, trial_id="x", values={"run.seed": 1}, last_report=report, error=error)


def test_ending_follows_from_the_last_report() -> None:
    assert read({"iteration": 100, "sweep/score": 0.5, "done": True}).ending == "finished"
    assert read({"iteration": 50, "sweep/score": 0.5, "done": True}).ending == "stopped by the scheduler"
    assert read({"iteration": 50, "sweep/score": 0.5, "done": False}).ending == "not finished"
    assert read({}).ending == "not finished"
    stopped = read({"iteration": 50, "sweep/score": 0.0, "done": True, "stopped": "mode_collapse: why"})
    assert (stopped.ending, stopped.note, stopped.value) == ("stopped by the guard", "mode_collapse: why", 0.0)
    failed = read({"iteration": 50, "sweep/score": 0.4, "done": True}, error="the learner died")
    assert (failed.ending, failed.note) == ("failed", "the learner died")
    assert read({"iteration": 0, "mistake": "never logged", "sweep/score": 0.0}).ending == "failed"


def test_result_keeps_only_numeric_metrics() -> None:
    report = {"iteration": 100, "sweep/score": 0.5, "eval/closeness": -0.2, "trial_id": "x", "time_total_s": 3.0}
    assert dict(read(report).metrics) == {"sweep/score": 0.5, "eval/closeness": -0.2}


def trial(name: str, ending: str, value: float | None, *, iteration: int = 100, **values: object) -> TrialResult:
    return TrialResult(name, values, ending, iteration, value, {})  # type: ignore[arg-type]


def test_finished_trials_rank_first() -> None:
    results = [
        trial("failed", "failed", None, iteration=0),
        trial("early", "stopped by the scheduler", 0.99, iteration=25),
        trial("later", "stopped by the scheduler", 0.2, iteration=50),
        trial("low", "finished", 0.3),
        trial("collapsed", "stopped by the guard", 0.0, iteration=60),
        trial("high", "finished", 0.6),
    ]
    names = ["high", "low", "later", "early", "collapsed", "failed"]
    assert [result.trial_id for result in ranked(results, "max")] == names
    assert [result.trial_id for result in ranked(results, "min")][:2] == ["low", "high"]


def test_best_setting_has_the_best_mean_over_seeds() -> None:
    def repeated(name: str, rate: int, *values: float) -> list[TrialResult]:
        return [
            trial(f"{name}{seed}", "finished", value, rate=rate, **{"run.seed": seed})
            for seed, value in enumerate(values)
        ]

    lucky, steady = repeated("a", 1, 0.9, 0.1), repeated("b", 2, 0.6, 0.7)
    best = best_of([*lucky, *steady], "max")
    assert best is not None and best.trial_id == "b1"
    worst = best_of([*lucky, *steady], "min")
    assert worst is not None and worst.trial_id == "a1"
    assert best_of([trial("x", "stopped by the scheduler", 0.9)], "max") is None


def setting(rate: int, *outcomes: tuple[str, float | None]) -> list[TrialResult]:
    return [
        trial(f"{rate}-{seed}", ending, value, rate=rate, **{"run.seed": seed})
        for seed, (ending, value) in enumerate(outcomes)
    ]


FINISHED, GUARD, ASHA = "finished", "stopped by the guard", "stopped by the scheduler"
STEADY = setting(1, (FINISHED, -0.5), (FINISHED, -0.4), (FINISHED, -0.6))


@pytest.mark.parametrize(
    "lost", [(GUARD, -1.5), (GUARD, -math.inf), (ASHA, -0.1), ("failed", None), ("not finished", -0.1)]
)
def test_a_setting_does_not_win_by_its_surviving_seeds(lost: tuple[str, float | None]) -> None:
    survivor = setting(2, (FINISHED, -0.2), lost, lost)
    best = best_of([*survivor, *STEADY], "max")
    assert best is not None and best.trial_id == "1-1"
    flipped = [replace(each, value=None if each.value is None else -each.value) for each in (*survivor, *STEADY)]
    best = best_of(flipped, "min")
    assert best is not None and best.trial_id == "1-1"
    assert best_of(survivor, "max") is survivor[0]


def test_seeds_that_the_guard_stopped_count_in_the_mean() -> None:
    """-0.9 against -0.8, though the other setting's finished seed is better; with equal ones it decides."""
    first, second = setting(1, (FINISHED, -0.3), (GUARD, -1.5)), setting(2, (FINISHED, -0.8), (GUARD, -0.8))
    assert best_of([*first, *second], "max") is second[0]
    first, second = (setting(rate, (FINISHED, value), (GUARD, -math.inf)) for rate, value in ((1, -0.8), (2, -0.3)))
    assert best_of([*first, *second], "max") is second[0]


def test_a_setting_that_was_sampled_more_often_is_not_better_for_it() -> None:
    often, once = [trial(f"o{n}", FINISHED, 0.3, rate=1) for n in range(3)], trial("x", FINISHED, 0.4, rate=2)
    assert best_of([*often, once], "max") is once


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_never_wins(value: float, mode: str) -> None:
    odd, usual = trial("odd", FINISHED, value, rate=1), trial("usual", FINISHED, 0.3, rate=2)
    assert best_of([odd, usual], mode) is best_of([usual, odd], mode) is usual
    assert best_of([odd], mode) is None
    if math.isnan(value):
        assert ranked([odd, usual], mode) == [usual, odd]
