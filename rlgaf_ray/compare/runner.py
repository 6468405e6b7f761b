"""``rlgaf compare``: check the methods, run all trials with Ray Tune, write the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune
from rich.console import Console

from rlgaf_ray.actors.cluster import ray_session
from rlgaf_ray.compare.configs import method_config, method_of, named
from rlgaf_ray.compare.guidance import check_labels
from rlgaf_ray.compare.measuring import PartMeasure
from rlgaf_ray.compare.page import grids, write_page
from rlgaf_ray.compare.results import table
from rlgaf_ray.compare.trial import Trial, run_trial, verdict_of
from rlgaf_ray.config import Config, dump_config, load_config
from rlgaf_ray.config.compare import MethodName
from rlgaf_ray.config.compose import leaves
from rlgaf_ray.config.hidden import public_values
from rlgaf_ray.data.task import Task, evaluation_set
from rlgaf_ray.errors import UserError
from rlgaf_ray.loop.data_checks import check_demonstrations
from rlgaf_ray.loop.run_folder import CONFIG, TRIALS, RunFolder
from rlgaf_ray.run.checks import check_before_start
from rlgaf_ray.run.preparation import Data, cache_folder, prepare_data, with_date, with_name, with_python_task
from rlgaf_ray.run.signals import SIGNAL_EXIT_OFFSET
from rlgaf_ray.sweep.interruptible import interruptible_tune
from rlgaf_ray.sweep.tuner import WIDE, with_absolute_paths
from rlgaf_ray.types import EVALUATION_PARTS

SETTINGS = "settings.json"
Job = tuple[MethodName, int]


def compare(config: Config, *, resume: bool, console: Console | None = None) -> int:
    """Run all unfinished trials of every method and replicate, and write the report.

    Returns the exit code: 0; 1 if a trial failed; 128 + n after signal n. Raises ``UserError`` before the first trial
    if the config or the data are invalid.
    """
    console = console or Console()
    if not console.is_terminal:
        console.width = WIDE
    config = with_absolute_paths(with_name(with_python_task(config)))
    if config.run.remote:
        raise UserError("rlgaf compare does not support a remote run.root: set it to a local folder")
    with RunFolder(config.run).claimed():
        folder = config.run.folder
        return _compare(with_date(config, folder / CONFIG), folder, console, resume=resume)


def _compare(config: Config, folder: Path, console: Console, *, resume: bool) -> int:
    open_folder(config, folder, resume=resume)
    jobs = [(name, replicate) for replicate in config.compare.numbers for name in config.compare.methods]
    pending = [job for job in jobs if not trial_file(folder, job).is_file()]
    console.print(f"{len(jobs)} trials in {folder}, {len(jobs) - len(pending)} already finished", highlight=False)
    errors, received = run_trials(config, pending, folder) if pending else ({}, [])
    trials = [Trial.load(trial_file(folder, job)) for job in jobs if trial_file(folder, job).is_file()]
    for (name, replicate), error in errors.items():
        console.print(f"{name} {replicate} failed: {error}", highlight=False, markup=False)
    if trials:
        rows = table(trials, config.compare.methods, config.compare.baseline)
        for each in grids(config, rows):
            console.print(each.shown)
        page = write_page(config, trials, rows, errors)
        console.print(f"wrote {page}, with tables and figures in the same folder", highlight=False, soft_wrap=True)
    if not trials or len(trials) < len(jobs):
        console.print(f"to resume: rlgaf compare --resume {config.run.again}", highlight=False, soft_wrap=True)
    if received:
        return SIGNAL_EXIT_OFFSET + received[0]
    return 0 if len(trials) == len(jobs) else 1


def trial_file(folder: Path, job: Job) -> Path:
    name, replicate = job
    return folder / TRIALS / f"{name}-{replicate}.json"


def open_folder(config: Config, folder: Path, *, resume: bool) -> None:
    """Check every method, and that an existing comparison has the same settings and data; then write the settings."""
    configs = {name: method_config(config, name, config.compare.first_replicate) for name in config.compare.methods}
    for each in configs.values():
        check_before_start(each)
    task = check_data(config, configs)  # its checksum is the same for every replicate
    # A resumed comparison may change these keys. With any other change its trials would not be comparable.
    can_change = {"replicates", "methods", "concurrent", "first_replicate", "baseline"}
    ignored: Any = {"run": {"root", "name"}, "cluster": True, "compare": can_change}
    file = folder / SETTINGS
    if file.is_file():
        if not resume:
            raise UserError(f"{folder} exists: add --resume to resume that comparison, or choose another run.name")
        if json.loads(file.read_text(encoding="utf-8"))["data"] != task.checksum:
            raise UserError(f"{folder} was started with other data: restore them, or choose another run.name")
        stored = load_config(folder / CONFIG)  # keys of later versions get their defaults
        before, now = (
            {
                ".".join(key): value
                for key, value in leaves(public_values(each.model_dump(mode="json", exclude=ignored)))
                if key[:2] != ("compare", "variants") or {*key[2:3]} & {*stored.compare.variants}  # others may be added
            }
            for each in (stored, config)
        )
        absent = object()
        if changed := sorted(key for key in {*before, *now} if before.get(key, absent) != now.get(key, absent)):
            raise UserError(
                f"{folder} was started with another {changed[0]}: restore it ({CONFIG} in that folder has the value), "
                "or choose another run.name"
            )
    elif resume:
        raise UserError(f"nothing to resume: {folder} contains no comparison")
    (folder / TRIALS).mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"data": task.checksum}), encoding="utf-8")
    (folder / CONFIG).write_text(dump_config(config), encoding="utf-8")


def check_data(config: Config, configs: Mapping[MethodName, Config]) -> Task:
    """Return the task of the first method, after checking that all methods work with their data.

    Raises ``UserError``, also for a variant that is evaluated on other prompts, whose results could not be compared.
    """
    prepared: dict[str, Data] = {}
    for name, each in configs.items():
        settings = each.task.model_dump_json()
        if settings not in prepared:
            prepared[settings] = prepare_data(each, cache_folder(config))
        data, first = prepared[settings], next(iter(prepared.values())).task
        task, method = data.task, method_of(config, name)
        evaluation_set(task, config.evaluation.num_prompts)
        if method.scorer == "verdict":
            verdict_of(task)
        with named(name, "these data"):
            check_demonstrations(each, task)
            if method.scorer == "posterior":
                task.negative_prompts(task.demonstrations[0].prompt_ids)
            if method.answering.guided:
                check_labels(each, data)
        if task is not first and evaluated_prompts(task) != evaluated_prompts(first):
            raise UserError(
                f"compare.methods: {name} is evaluated on other prompts than {config.compare.methods[0]}: remove its "
                "keys of the section task that change them"
            )
    data = next(iter(prepared.values()))
    measure = PartMeasure(config, data, "validation")
    measure(measure.real_texts)  # raises for a quality that it does not measure
    return data.task


def evaluated_prompts(task: Task) -> list[bytes]:
    return [item.prompt_ids.tobytes() for part in EVALUATION_PARTS for item in task.evaluation(part)]


def run_trials(config: Config, jobs: Sequence[Job], folder: Path) -> tuple[dict[Job, str], list[int]]:
    """Run each trial in its own process on one core. Return the errors of failed trials and the received signals."""
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
    """Prints a line per finished trial. Ray Tune pickles it, so it cannot hold a ``Console``."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        result = trial.last_result
        quality, seconds = result.get("quality", float("nan")), result.get("seconds", 0)
        self._line(trial, f"{quality:.3f} with the best decoding, {seconds:.0f} s")

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._line(trial, "failed")

    def _line(self, trial: Any, result: str) -> None:
        self.done += 1
        print(f"{self.done}/{self.total} {trial.config['trial']}: {result}", flush=True)
