"""A trial's reports to Tune, and copying a checkpoint to another trial."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from rlgaf_ray.data.storage import Place
from rlgaf_ray.sweep.history import TRIAL, History, TrialCheckpoints, UnknownMetric


def evaluated(quality: float, **more: float) -> dict[str, float]:
    ratios = {"eval/distinct_2_ratio": 1.0, "eval/perplexity_ratio": 1.0, "eval/perplexity": 100.0}
    return {"eval/closeness": quality, **ratios, **more}


def after(*rows: tuple[int, dict[str, float]], metric: str = "sweep/score", mode: str = "max") -> History:
    history = History("one", metric=metric, mode=mode, quality="eval/closeness")
    for iteration, metrics in rows:
        follow(history, iteration, metrics)
    return history


def follow(history: History, iteration: int, metrics: dict[str, float]) -> None:
    """Call the callback as the loop does."""
    history.on_iteration(iteration, metrics)
    if "eval/perplexity" in metrics:
        history.on_evaluation(iteration, metrics)


def test_report_has_the_newest_evaluation_and_the_score() -> None:
    history = after((0, evaluated(0.0)), (1, {"reward/mean": 2.0}), (2, {"reward/mean": 3.0, **evaluated(-0.25)}))
    assert history.evaluated_at(2)
    report = history.report()
    assert (report["iteration"], report["sweep/score"], report["eval/closeness"]) == (2, -0.25, -0.25)
    assert "reward/mean" not in report and report["stopped"] == ""
    follow(history, 3, {"reward/mean": 4.0})
    assert not history.evaluated_at(3)
    assert not after((0, evaluated(0.0))).evaluated_at(0)  # the SFT model's own


def test_any_logged_metric_can_be_optimised() -> None:
    history = after((0, evaluated(0.0)), (1, {"reward/mean": 2.0}), (2, evaluated(0.5)), metric="reward/mean")
    assert history.report()["reward/mean"] == 2.0  # the newest value
    assert history.stopped("mode_collapse")["reward/mean"] == -math.inf
    low = after((0, evaluated(0.0)), (2, evaluated(0.5)), metric="eval/perplexity", mode="min")
    assert low.report()["eval/perplexity"] == 100.0
    assert low.stopped("x")["eval/perplexity"] == math.inf


def test_a_guard_stop_gets_the_worst_score() -> None:
    history = after((0, evaluated(0.0)), (2, evaluated(0.9)), (3, {"reward/mean": 1.0}))
    assert history.stopped("iteration 4: non_finite") == {
        "sweep/score": -1.5,
        "iteration": 3,
        "stopped": "iteration 4: non_finite",
    }


def test_an_unknown_metric_raises_as_early_as_possible() -> None:
    with pytest.raises(UnknownMetric) as caught:
        after((0, evaluated(0.0)), metric="eval/closenes")
    assert str(caught.value) == (
        "sweep.metric=eval/closenes is never logged by these runs; did you mean eval/closeness?"
    )
    late = after((0, evaluated(0.0)), (1, {"reward/mean": 0.0}), metric="generator/grad_nrm")
    with pytest.raises(UnknownMetric, match=r"never logged by these runs \(docs/metrics.md lists all metrics\)$"):
        follow(late, 2, evaluated(0.1))


def test_a_rollback_replaces_later_evaluations() -> None:
    history = after((0, evaluated(0.0)), (2, evaluated(0.5)), (4, evaluated(0.1)), (4, evaluated(0.7)))
    assert [iteration for iteration, _ in history.evaluations] == [0, 2, 4]
    assert history.report()["sweep/score"] == pytest.approx(0.7)
    assert [iteration for iteration, _ in history.state_dict(2)["evaluations"]] == [0, 2]


def test_copy_from_another_trial_takes_weights_and_history(tmp_path: Path) -> None:
    reported: list[Place] = []
    donor = after((0, evaluated(0.0)), (2, evaluated(0.5)))
    donor.evaluated = lambda history, folder: reported.append(folder)
    theirs = TrialCheckpoints(tmp_path / "one", donor)
    source = theirs.save(2, lambda folder: (folder / "weights").write_text("good"), {"iteration": 2}, best=True)
    assert isinstance(source, Path)
    donor.on_checkpoint(2, source)
    assert reported == [source]
    donor.on_checkpoint(1, theirs.save(1, lambda folder: None, {"iteration": 1}, best=False))
    assert reported == [source]  # no evaluation at iteration 1

    history = History("two", metric="sweep/score", mode="max", quality="eval/closeness")
    ours = TrialCheckpoints(tmp_path / "two", history)
    ours.save(3, lambda folder: (folder / "weights").write_text("bad"), {"iteration": 3}, best=True)
    assert ours.copy_from(source) == "one"
    path, state, damage = ours.newest_usable()
    assert (path.name, state, damage) == ("step_000002", {"iteration": 2}, [])  # its own later checkpoint is deleted
    assert (path / "weights").read_text() == "good"
    history.load_state_dict(json.loads((path / TRIAL).read_text()))
    assert history.report()["sweep/score"] == 0.5

    own = ours.save(4, lambda folder: None, {"iteration": 4}, best=False)
    assert isinstance(own, Path)
    assert ours.copy_from(own) is None  # Tune's copy of a trial's own checkpoint is never newer than the folder's
    assert ours.newest_usable()[1] == {"iteration": 4}


def test_a_lost_folder_is_restored_from_tunes_checkpoint(tmp_path: Path) -> None:
    history = after((0, evaluated(0.0)), (2, evaluated(0.5)))
    kept = TrialCheckpoints(tmp_path / "tune", history)
    source = kept.save(2, lambda folder: None, {"iteration": 2}, best=False)
    assert isinstance(source, Path)
    fresh = TrialCheckpoints(tmp_path / "fresh", history)
    assert fresh.copy_from(source) is None
    assert fresh.newest_usable()[1] == {"iteration": 2}
