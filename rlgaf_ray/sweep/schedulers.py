"""Build Tune's search space, searcher and scheduler from the config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule, PopulationBasedTraining, TrialScheduler
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter, Searcher
from ray.tune.search.variant_generator import generate_variants

from rlgaf_ray.config import Config
from rlgaf_ray.config.sweep import Domain
from rlgaf_ray.sweep.space import grace

TIME = "iteration"  # the schedulers' time attribute, in every report
REPORTS = "reports.jsonl"  # in a trial's folder: its reports to Tune


class ResumableAsha(ASHAScheduler):
    """ASHA that refills its rungs from the trials' reports on resume; Tune does not restore a scheduler's state."""

    def __init__(self, trials: Path, **settings: Any) -> None:
        super().__init__(**settings)
        self.trials = trials

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        super().on_trial_add(tune_controller, trial)
        for report in read_reports(self.trials / trial.trial_id):
            super().on_trial_result(tune_controller, trial, report)


class ResumableMedian(MedianStoppingRule):
    """Median stopping that refills its running means from the trials' reports on resume."""

    def __init__(self, trials: Path, **settings: Any) -> None:
        super().__init__(**settings)
        self.trials = trials

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        super().on_trial_add(tune_controller, trial)
        for report in read_reports(self.trials / trial.trial_id):
            super().on_trial_complete(tune_controller, trial, report)


class PresentLimit:
    """Mix-in of a searcher that keeps its limit on concurrent trials when Tune restores the state of an earlier one."""

    max_concurrent: int

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state | {"max_concurrent": self.max_concurrent})  # type: ignore[misc]


class ResumableVariants(PresentLimit, BasicVariantGenerator):
    """Random and grid search with the limit of the present cluster."""


class ResumableLimiter(PresentLimit, ConcurrencyLimiter):
    """Another searcher with the limit of the present cluster."""


class SteadyPopulation(PopulationBasedTraining):
    """Synchronous population-based training in which no trial waits forever.

    In Ray 2.60, all trials stay paused if they exploit at or after the iteration of the next exploit, or if the one
    that the others wait for ends: it ignores trials that end, and counts those that fail as running.
    """

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        before = int(self._next_perturbation_sync)
        for other, state in self._trial_state.items():
            if other.is_finished():
                state.last_train_time = before  # nobody waits for it
        decision = super().on_trial_result(tune_controller, trial, result)
        if self._next_perturbation_sync > before:
            latest = max(self._trial_state[other].last_train_time for other in tune_controller.get_live_trials())
            if latest >= self._next_perturbation_sync:
                self._next_perturbation_sync = latest + self._perturbation_interval
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        self._leave(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        self._leave(tune_controller, trial)

    def _leave(self, tune_controller: Any, trial: Trial) -> None:
        """Remove an ending trial from the population; if the others wait for it, they exploit now."""
        ended = self._trial_state[trial]
        ended.last_score = None  # neither copied nor overwritten
        ended.last_train_time = int(self._next_perturbation_sync)
        times = {
            other: self._trial_state[other].last_train_time
            for other in tune_controller.get_live_trials()
            if other is not trial and not other.is_finished()
        }
        if times and min(times.values()) >= self._next_perturbation_sync:
            latest = max(times, key=times.__getitem__)
            report = self._trial_state[latest].last_result
            assert report is not None
            self.on_trial_result(tune_controller, latest, report)


def read_reports(folder: Path) -> list[dict[str, Any]]:
    """Read a trial's reports to Tune; none if it has no file yet. An incomplete last line (after a kill) is skipped."""
    path = folder / REPORTS
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def build_space(config: Config) -> dict[str, Any]:
    """Translate ``sweep.space`` into Tune's search space."""
    return {key: _distribution(domain) for key, domain in config.sweep.space.items()}


def _distribution(domain: Domain) -> Any:
    match domain.kind:
        case "grid":
            return tune.grid_search(domain.values)
        case "choice":
            return tune.choice(domain.values)
        case "uniform":
            assert domain.uniform is not None
            return tune.uniform(*domain.uniform)
        case kind:
            assert kind == "log_uniform" and domain.log_uniform is not None
            return tune.loguniform(*domain.log_uniform)


def planned_values(config: Config) -> list[dict[str, Any]]:
    """Return the values of every trial that the searcher ``random`` samples; empty for one that learns from results."""
    if config.sweep.searcher != "random":
        return []
    spec, random = {"config": build_space(config)}, np.random.default_rng(config.run.seed)
    samples = (generate_variants(spec, random_state=random) for _ in range(config.sweep.num_samples))
    return [variant["config"] for sample in samples for _, variant in sample]


def build_searcher(config: Config, concurrent: int) -> BasicVariantGenerator | Searcher:
    """Build the searcher ``sweep.searcher``, seeded with ``run.seed``, for this many trials at a time.

    Population-based training needs all trials from the start; ``plan_trials`` reserves the cores that limit them.
    """
    if config.sweep.searcher == "random":
        limit = 0 if config.sweep.scheduler == "pbt" else concurrent
        return ResumableVariants(random_state=config.run.seed, max_concurrent=limit)
    from ray.tune.search.optuna import OptunaSearch  # the extra "tune"

    return ResumableLimiter(OptunaSearch(seed=config.run.seed), max_concurrent=concurrent)


def build_scheduler(config: Config, trials: Path) -> TrialScheduler | None:
    """Build the scheduler ``sweep.scheduler``; ``trials`` is the folder that holds the trials' folders."""
    sweep = config.sweep
    match sweep.scheduler:
        case "none":
            return None
        case "asha":
            return ResumableAsha(
                trials,
                time_attr=TIME,
                max_t=config.run.iterations,
                grace_period=grace(config),
                reduction_factor=sweep.asha.reduction_factor,
            )
        case "median":
            return ResumableMedian(
                trials,
                time_attr=TIME,
                grace_period=grace(config),
                min_samples_required=sweep.median.min_trials,
            )
        case "pbt":
            mutated = sweep.pbt.mutate or list(sweep.space)
            return SteadyPopulation(
                time_attr=TIME,
                perturbation_interval=sweep.pbt.every,
                burn_in_period=grace(config),
                hyperparam_mutations={key: _mutation(sweep.space[key]) for key in mutated},
                quantile_fraction=sweep.pbt.quantile,
                resample_probability=sweep.pbt.resample,
                custom_explore_fn=Bounded({key: sweep.space[key] for key in mutated}),
                # Trials wait for each other before each exploit. Otherwise, if not all fit on the cluster at once, a
                # bad trial that arrives first is compared with none and continues.
                synch=True,
                log_config=False,
            )


def _mutation(domain: Domain) -> Any:
    return domain.values or _distribution(domain)


class Bounded:
    """Clips the values that population-based training has mutated to the bounds of the space."""

    def __init__(self, space: dict[str, Domain]) -> None:
        self.bounds = {key: domain.bounds for key, domain in space.items() if domain.bounds}

    def __call__(self, values: dict[str, Any]) -> dict[str, Any]:
        for key, (low, high) in self.bounds.items():
            values[key] = min(high, max(low, values[key]))
        return values
