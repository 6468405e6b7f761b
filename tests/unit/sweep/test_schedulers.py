from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.experiment import Experiment, Trial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.sample import Categorical, Float

from rlgaf_ray.config import load_config
from rlgaf_ray.sweep.schedulers import (
    REPORTS,
    Bounded,
    build_scheduler,
    build_searcher,
    build_space,
    planned_values,
    read_reports,
)
from rlgaf_ray.sweep.space import num_trials

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


@dataclass(eq=False)
class Member:
    """A trial of a population, and what it reports: a row every ``every`` iterations, until it ends."""

    trial_id: str
    every: int
    iterations: int
    value: float
    fails: bool = False
    iteration: int = 0
    status: str = Trial.PENDING
    experiment_tag: str = ""
    config: dict[str, Any] = field(default_factory=lambda: {"generator.learning_rate": 1e-4})

    def __post_init__(self) -> None:
        self.run_metadata = SimpleNamespace(
            checkpoint_manager=SimpleNamespace(checkpoint_config=SimpleNamespace(num_to_keep=3))
        )
        self.temporary_state = SimpleNamespace(saving_to=None)
        self.checkpoint = self.trial_id

    def is_finished(self) -> bool:
        return self.status in (Trial.TERMINATED, Trial.ERROR)

    def set_experiment_tag(self, tag: str) -> None:
        self.experiment_tag = tag

    def set_config(self, config: dict[str, Any]) -> None:
        self.config = config


class OneAtATime:
    """Tune's controller on a cluster that fits one trial. It keeps failed trials among the live ones, as Tune does."""

    search_alg = None

    def __init__(self, scheduler: Any, *members: Member) -> None:
        self.scheduler, self.trials, self.live = scheduler, list(members), set(members)
        for member in members:
            scheduler.on_trial_add(self, member)

    def get_trials(self) -> list[Member]:
        return self.trials

    def get_live_trials(self) -> set[Member]:
        return self.live

    def pause_trial(self, trial: Member, should_checkpoint: bool) -> None:
        trial.status = Trial.PAUSED

    def _schedule_trial_save(self, trial: Member, result: Any) -> str:
        return trial.trial_id

    def run(self) -> list[tuple[str, int]]:
        """Run all trials to their ends; returns the exploits: who copied, and at which iteration."""
        exploits = []
        exploit = self.scheduler._exploit

        def record(controller: Any, trial: Member, donor: Member) -> None:
            assert not donor.is_finished() and donor.iteration > 0
            exploit(controller, trial, donor)
            trial.iteration = donor.iteration
            exploits.append((f"{donor.trial_id}>{trial.trial_id}", donor.iteration))

        self.scheduler._exploit = record
        while not all(member.is_finished() for member in self.trials):
            trial = self.scheduler.choose_trial_to_run(self)
            assert trial is not None, f"all wait: {[(each.trial_id, each.iteration) for each in self.trials]}"
            trial.status = Trial.RUNNING
            while trial.status == Trial.RUNNING:
                self.step(trial)
        return exploits

    def step(self, trial: Member) -> None:
        trial.iteration = min(trial.iteration + trial.every, trial.iterations)
        report = {"iteration": trial.iteration, "sweep/score": trial.value}
        if trial.iteration < trial.iterations:
            if self.scheduler.on_trial_result(self, trial, report) == TrialScheduler.PAUSE:
                trial.status = Trial.PAUSED
        elif trial.fails:
            self.scheduler.on_trial_error(self, trial)
            trial.status = Trial.ERROR
        else:
            self.scheduler.on_trial_complete(self, trial, report)
            trial.status = Trial.TERMINATED
            self.live.discard(trial)


def population(*members: Member) -> OneAtATime:
    rates = "sweep.space={generator.learning_rate: {log_uniform: [1e-5, 1e-3]}}"
    words = [rates, "sweep.scheduler=pbt", "sweep.grace=50", "sweep.pbt={every: 50, quantile: 0.5}"]
    made: Any = build_scheduler(load_config(None, words), Path())
    made.set_search_properties("sweep/score", "max")
    return OneAtATime(made, *members)


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        (25, [50, 100, 150, 200, 250]),
        (40, [80, 160, 240]),  # an exploit at 160 exactly, after the one that is due at 150
        (50, [50, 100, 150, 200, 250]),
        (75, [75, 150, 225]),
    ],
)
def test_a_population_whose_exploits_are_late_goes_on(every: int, expected: list[int]) -> None:
    exploits = population(Member("a", every, 300, 0.9), Member("b", every, 300, 0.1)).run()
    assert exploits == [("a>b", iteration) for iteration in expected]


def test_a_population_that_is_resumed_late_goes_on() -> None:
    """Tune does not restore the scheduler, so it expects the first exploit at 50 again."""
    exploits = population(Member("a", 25, 300, 0.9, iteration=150), Member("b", 25, 300, 0.1, iteration=150)).run()
    assert exploits == [("a>b", 175), ("a>b", 225), ("a>b", 275)]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("end", [20, 45, 70, 130])
def test_a_population_goes_on_without_a_trial_that_ends_early(end: int, fails: bool) -> None:
    """The others wait for it when it ends; they exploit then and later, without it."""
    good, bad = Member("good", 25, 300, 0.9), Member("bad", 25, 300, 0.1)
    early = Member("early", 10, end, 0.5, fails=fails)
    exploits = population(good, bad, early).run()
    assert [iteration for name, iteration in exploits if name == "good>bad"] == [50, 100, 150, 200, 250]
    assert good.status == bad.status == Trial.TERMINATED


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
        searcher = build_searcher(config, 20)
        assert isinstance(searcher, Searcher)
        assert searcher.set_search_properties("sweep/score", "max", build_space(config))
        draws.append([searcher.suggest(str(number)) for number in range(20)])
    assert draws[0] == draws[1]  # seeded with run.seed
    assert all(draw is not None and 1e-5 <= draw["generator.learning_rate"] <= 1e-3 for draw in draws[0])
    assert {draw["run.seed"] for draw in draws[0] if draw} == {0, 1}


@pytest.mark.parametrize(
    ("words", "started"),
    [(["sweep.scheduler=asha"], 2), (["sweep.scheduler=none"], 2), (["sweep.scheduler=pbt"], 4)],
)
def test_the_searcher_starts_so_many_trials_at_a_time(words: list[str], started: int) -> None:
    """A population is whole from the start; cores limit how many of it run."""
    config = load_config(None, [SPACE, "sweep.num_samples=2", *words])
    searcher: Any = build_searcher(config, 2)
    experiment = Experiment("x", lambda values: None, config=build_space(config), num_samples=2)
    searcher.add_configurations([experiment])
    trials = [searcher.next_trial() for _ in range(5)]
    assert sum(trial is not None for trial in trials) == started
    searcher.on_trial_complete(trials[0].trial_id)
    assert (searcher.next_trial() is not None) == (started < 4)


def test_the_planned_values_are_those_of_the_trials() -> None:
    section = "sweep.space.rollout={choice: [{batch_size: 32, samples_per_prompt: 8}, {temperature: 0.9}]}"
    config = load_config(None, [SPACE, section, "sweep.num_samples=5", "run.seed=3"])
    searcher: Any = build_searcher(config, 100)
    experiment = Experiment("x", lambda values: None, config=build_space(config), num_samples=5)
    searcher.add_configurations([experiment])
    assert planned_values(config) == [trial.config for trial in iter(searcher.next_trial, None)]
    assert len(planned_values(config)) == num_trials(config) == 10


def test_mutations_stay_within_the_bounds() -> None:
    bounded = Bounded(load_config(None, [SPACE]).sweep.space)
    values = {"run.seed": 7, "reward.kind": "logit", "generator.learning_rate": 1.0, "discriminator.learning_rate": 0.0}
    assert bounded(values) == {**values, "generator.learning_rate": 1e-3, "discriminator.learning_rate": 0.1}
