from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.sample import Categorical, Float

from rlgaf_ray.config import load_config
from rlgaf_ray.sweep.schedulers import REPORTS, Bounded, build_scheduler, build_searcher, build_space, read_reports

SPACE = (
    "sweep.space={run.seed: {grid: [0, 1]}, reward.kind: {choice: [logit]}, "
    "generator.learning_rate: {log_uniform: [1e-5, 1e-3]}, discriminator.learning_rate: {uniform: [0.1, 0.2]}}"
)


@dataclass(frozen=True)
class Named:
    """The part of a Tune trial that the schedulers use."""

    trial_id: str


def reported(folder: Path, trial_id: str, *values: float) -> Any:
    (folder / trial_id).mkdir()
    rows = [{"iteration": 25 * (row + 1), "sweep/score": value} for row, value in enumerate(values)]
    (folder / trial_id / REPORTS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Named(trial_id)


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_a_resumed_scheduler_knows_earlier_trials(tmp_path: Path, scheduler: str) -> None:
    config = load_config(
        None,
        [SPACE, "run.iterations=100", "sweep.grace=25", f"sweep.scheduler={scheduler}", "sweep.median.min_trials=2"],
    )
    made = build_scheduler(config, tmp_path)
    assert made is not None
    made.set_search_properties("sweep/score", "max")
    controller: Any = None
    for trial_id, value in (("a", 0.8), ("b", 0.6)):
        made.on_trial_add(controller, reported(tmp_path, trial_id, value, value))
    decisions = {}
    for trial_id, value in (("good", 0.9), ("bad", 0.1)):
        trial: Any = Named(trial_id)
        made.on_trial_add(controller, trial)
        decisions[trial_id] = made.on_trial_result(controller, trial, {"iteration": 25, "sweep/score": value})
    assert decisions == {"good": TrialScheduler.CONTINUE, "bad": TrialScheduler.STOP}


def test_an_incomplete_last_report_is_skipped(tmp_path: Path) -> None:
    assert read_reports(tmp_path) == []
    (tmp_path / REPORTS).write_text('{"iteration": 25}\n{"itera')
    assert read_reports(tmp_path) == [{"iteration": 25}]


def test_build_space_translates_each_domain() -> None:
    space = build_space(load_config(None, [SPACE]))
    assert space["run.seed"] == {"grid_search": [0, 1]}
    assert isinstance(space["reward.kind"], Categorical) and space["reward.kind"].categories == ["logit"]
    rates = space["generator.learning_rate"], space["discriminator.learning_rate"]
    assert all(isinstance(rate, Float) for rate in rates)
    assert [(rate.lower, rate.upper) for rate in rates] == [(1e-5, 1e-3), (0.1, 0.2)]


def test_optuna_samples_within_the_bounds() -> None:
    pytest.importorskip("optuna", reason="the extra 'tune' is not installed")
    config = load_config(
        None,
        [SPACE.replace("grid", "choice"), "sweep.searcher=optuna", "run.seed=3"],
    )
    draws = []
    for _ in range(2):
        searcher = build_searcher(config)
        assert isinstance(searcher, Searcher)
        assert searcher.set_search_properties("sweep/score", "max", build_space(config))
        draws.append([searcher.suggest(str(number)) for number in range(20)])
    assert draws[0] == draws[1]  # seeded with run.seed
    assert all(draw is not None and 1e-5 <= draw["generator.learning_rate"] <= 1e-3 for draw in draws[0])
    assert {draw["run.seed"] for draw in draws[0] if draw} == {0, 1}


def test_mutations_stay_within_the_bounds() -> None:
    bounded = Bounded(load_config(None, [SPACE]).sweep.space)
    values = {"run.seed": 7, "reward.kind": "logit", "generator.learning_rate": 1.0, "discriminator.learning_rate": 0.0}
    assert bounded(values) == {**values, "generator.learning_rate": 1e-3, "discriminator.learning_rate": 0.1}
