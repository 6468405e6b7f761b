from __future__ import annotations

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
