"""``rlgaf compare``: all trials with Ray Tune, from the checks to the page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune
from rich.console import Console

from rlgaf_ray.actors.cluster import ray_session
from rlgaf_ray.compare.methods import METHODS, method_config, named
from rlgaf_ray.compare.page import grids, write_page
from rlgaf_ray.compare.results import table
from rlgaf_ray.compare.trial import Trial, run_trial, verdict_of
from rlgaf_ray.config import Config, dump_config, load_config
from rlgaf_ray.config.compare import MethodName
from rlgaf_ray.config.hidden import public_values
from rlgaf_ray.data.task import evaluation_set
from rlgaf_ray.errors import UserError
from rlgaf_ray.loop.data_checks import check_demonstrations
from rlgaf_ray.loop.run_folder import RunFolder
from rlgaf_ray.run.preparation import cache_folder, check_before_start, prepare_data, with_name
from rlgaf_ray.run.signals import SIGNAL_EXIT_OFFSET
from rlgaf_ray.sweep.tuner import WIDE, interruptible_tune, with_absolute_paths

TRIALS, SETTINGS, CONFIG = "trials", "settings.json", "config.yaml"
Job = tuple[MethodName, int]


def compare(config: Config, *, resume: bool, console: Console | None = None) -> int:
    """Run what is not there yet of every method on every replicate, and write tables and page.

    Returns the exit code: 0, 1 if a trial failed, 128 + n after signal n. Raises ``UserError`` for a user's mistake
    before anything starts.
    """
    console = console or Console()
    if not console.is_terminal:
        console.width = WIDE
    config = with_absolute_paths(with_name(config))
    if config.run.remote:
        raise UserError("rlgaf compare writes to a local folder: set run.root to one")
    with RunFolder(config.run).claimed():
        return _compare(config, config.run.folder, console, resume=resume)


def _compare(config: Config, folder: Path, console: Console, *, resume: bool) -> int:
    open_folder(config, folder, resume=resume)
    jobs = [(name, replicate) for replicate in config.compare.numbers for name in config.compare.methods]
    left = [job for job in jobs if not trial_file(folder, job).is_file()]
    console.print(f"{len(jobs)} trials, {len(jobs) - len(left)} of them there already, in {folder}", highlight=False)
    errors, received = run_trials(config, left, folder) if left else ({}, [])
    trials = [Trial.load(trial_file(folder, job)) for job in jobs if trial_file(folder, job).is_file()]
    for (name, replicate), error in errors.items():
        console.print(f"{name} {replicate} failed: {error}", highlight=False, markup=False)
    if trials:
        rows = table(trials, config.compare.methods, config.compare.baseline)
        for each in grids(config, rows):
            console.print(each.shown)
        page = write_page(config, trials, rows, errors)
        console.print(f"everything is in {page} and the folder around it", highlight=False, soft_wrap=True)
    if not trials or len(trials) < len(jobs):
        again = f"run.root={config.run.root} run.name={config.run.name}"
        console.print(f"go on with compare --resume {again}", highlight=False, soft_wrap=True)
    if received:
        return SIGNAL_EXIT_OFFSET + received[0]
    return 0 if len(trials) == len(jobs) else 1


def trial_file(folder: Path, job: Job) -> Path:
    name, replicate = job
    return folder / TRIALS / f"{name}-{replicate}.json"


def open_folder(config: Config, folder: Path, *, resume: bool) -> None:
    """Check every method, and that what is in the folder was made with these settings on these data."""
    configs = [method_config(config, name, config.compare.first_replicate) for name in config.compare.methods]
    for each in configs:
        check_before_start(each)
    task = prepare_data(configs[0], cache_folder(config)).task  # its checksum is the same for every replicate
    evaluation_set(task, config.evaluation.num_prompts)
    for name, each in zip(config.compare.methods, configs, strict=True):
        with named(name, "these data"):
            check_demonstrations(each, task)
    if any(METHODS[name].verdict for name in config.compare.methods):
        verdict_of(task)
    # More replicates, methods or trials at a time go on with what is there; anything else would not compare.
    free = {"replicates", "methods", "concurrent", "first_replicate", "baseline"}
    unlike: Any = {"run": {"root", "name"}, "cluster": True, "compare": free}
    file = folder / SETTINGS
    if file.is_file():
        if not resume:
            raise UserError(f"{folder} exists: add --resume to go on with that comparison, or choose another run.name")
        if json.loads(file.read_text(encoding="utf-8"))["data"] != task.checksum:
            raise UserError(f"{folder} was begun with other data: bring them back, or choose another run.name")
        begun = load_config(folder / CONFIG)  # a key that is not there has its default
        before, now = (public_values(each.model_dump(mode="json", exclude=unlike)) for each in (begun, config))
        if changed := differing(before, now):
            raise UserError(
                f"{folder} was begun with another {changed[0]}: set it as it was (config.yaml there), or choose "
                "another run.name"
            )
    elif resume:
        raise UserError(f"nothing to resume: {folder} holds no comparison")
    (folder / TRIALS).mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"data": task.checksum}), encoding="utf-8")
    (folder / CONFIG).write_text(dump_config(config), encoding="utf-8")


def differing(before: Any, now: Any, key: str = "") -> list[str]:
    """Dotted keys whose values differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            found
            for name in sorted({*before, *now})
            for found in differing(before.get(name), now.get(name), f"{key}.{name}" if key else name)
        ]
    return [] if before == now else [key]


def run_trials(config: Config, jobs: Sequence[Job], folder: Path) -> tuple[dict[Job, str], list[int]]:
    """Each in a process of its own on one core. Returns the error of each that failed, and the signals received."""
    labels = {f"{name} {replicate}": (name, replicate) for name, replicate in jobs}

    def trial(values: dict[str, Any]) -> None:
        name, replicate = labels[values["trial"]]
        found = run_trial(config, name, replicate, folder / "runs")
        found.save(trial_file(folder, (name, replicate)))
        best = max(each.quality for each in found.parts["test"])
        tune.report({"quality": best, "seconds": sum(found.seconds.values())})

    with ray_session(config):
        concurrent = config.compare.concurrent or max(1, int(ray.cluster_resources().get("CPU", 1)))
        with interruptible_tune() as received:
            grid = tune.Tuner(
                tune.with_resources(trial, {"CPU": 1}),
                param_space={"trial": tune.grid_search(list(labels))},
                tune_config=tune.TuneConfig(max_concurrent_trials=concurrent),
                run_config=tune.RunConfig(
                    name="tune",
                    storage_path=str(folder),
                    verbose=0,
                    callbacks=[Lines(len(labels))],
                    failure_config=tune.FailureConfig(max_failures=0),
                ),
            ).fit()
        errors = {
            labels[result.config["trial"]]: " ".join(str(result.error).split())[-400:]
            for result in map(grid.__getitem__, range(len(grid)))
            if result.error is not None and result.config is not None
        }
    return errors, received


class Lines(tune.Callback):
    """A line for each trial that ends. Ray Tune pickles it, which a console cannot be."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        result = trial.last_result
        quality, seconds = result.get("quality", float("nan")), result.get("seconds", 0)
        self._line(trial, f"{quality:.3f} with the best decoding, {seconds:.0f} s")

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._line(trial, "failed")

    def _line(self, trial: Any, what: str) -> None:
        self.done += 1
        print(f"{self.done}/{self.total} {trial.config['trial']}: {what}", flush=True)
