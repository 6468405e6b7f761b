"""``rlgaf tune``: a hyperparameter search over one config with Ray Tune."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ray import tune
from ray.util.placement_group import remove_placement_group
from rich.console import Console

from rlgaf_ray.actors.cluster import cluster_resources, ray_session
from rlgaf_ray.actors.placement import STARTUP_SECONDS, Placement, reserve
from rlgaf_ray.config import Config, dump_config, load_config, uri, with_values
from rlgaf_ray.config.rows import TaskSettings
from rlgaf_ray.config.task import TaskSection
from rlgaf_ray.data.remote import Remote
from rlgaf_ray.data.storage import Place
from rlgaf_ray.errors import UserError
from rlgaf_ray.loop.reward_functions import reward_functions
from rlgaf_ray.loop.run_folder import TRIALS, RunFolder
from rlgaf_ray.models.built_in import absolute_source
from rlgaf_ray.report.console import Terminal
from rlgaf_ray.run.checks import check_before_start
from rlgaf_ray.run.preparation import with_date, with_name, with_python_task
from rlgaf_ray.run.signals import SIGNAL_EXIT_OFFSET
from rlgaf_ray.sweep.console import Lines, describe, result_table
from rlgaf_ray.sweep.interruptible import interruptible_tune
from rlgaf_ray.sweep.page import write_page
from rlgaf_ray.sweep.resources import plan_trials
from rlgaf_ray.sweep.results import TrialResult, best_of, ranked, read_result
from rlgaf_ray.sweep.schedulers import build_scheduler, build_searcher, build_space, planned_values
from rlgaf_ray.sweep.space import check_sweep, combined, num_trials, single_variants
from rlgaf_ray.sweep.trial import run_trial
from rlgaf_ray.sweep.warmups import make_warmups, prepare_variants
from rlgaf_ray.tracking.build import make_trackers

STATE = "tune"  # in the sweep's folder: Ray Tune's own files
BEST = "best.yaml"
WIDE = 180  # width of the table without a terminal, in characters
SECTIONS = {name: section for name, section in TaskSection() if isinstance(section, TaskSettings)}
PATHS = (
    "run.root",
    "warmup.cache",
    *(f"task.{name}.{key}" for name, section in SECTIONS.items() for key in section.path_keys),
)
SOURCES = (
    "model.generator",
    *(f"task.{name}.{key}" for name, section in SECTIONS.items() for key in section.source_keys),
)


def sweep(config: Config, *, resume: bool, other_versions: bool = False) -> int:
    """Run the trials; returns the exit code: 0, or 128 + n if signal n ended the sweep early.

    Raises ``UserError`` for bad input, before anything expensive starts, and if no trial finished.
    """
    config = with_absolute_paths(with_name(with_python_task(config)))
    folder = RunFolder(config.run)
    with folder.claimed():
        return _sweep(config, folder, resume=resume, other_versions=other_versions)


def _sweep(config: Config, folder: RunFolder, *, resume: bool, other_versions: bool) -> int:
    open_sweep_folder(config, folder, resume=resume)
    config = with_date(config, folder.local / "config.yaml")  # the same date for all trials
    check_sweep(config)
    combined(config, planned_values(config))
    for variant in single_variants(config):
        check_before_start(variant)
        make_trackers(variant.tracking.to)
        reward_functions(variant.reward)
    terminal = Terminal()
    prepared = prepare_variants(config, terminal)
    with folder.mirrored(), ray_session(config):
        cpus, gpus, node_cpus = cluster_resources()
        placement, concurrent = plan_trials(config, cluster_cpus=cpus, cluster_gpus=gpus, node_cpus=node_cpus)
        timeout = max(config.cluster.join_seconds, STARTUP_SECONDS)
        remove_placement_group(reserve(placement, timeout=timeout))  # check that the bundles fit on the nodes
        make_warmups(config, prepared, terminal)
        terminal.on_message(f"{num_trials(config)} trials, {concurrent} at a time, in {folder.place / TRIALS}")
        folder.local.mkdir(parents=True, exist_ok=True)
        (folder.local / "config.yaml").write_text(dump_config(config), encoding="utf-8")
        with interruptible_tune() as received:
            tuner = build_tuner(config, folder, placement, concurrent, resume=resume, other_versions=other_versions)
            grid = tuner.fit()
        results = [_result(config, grid[index]) for index in range(len(grid))]
        folder.fetch_trials()
        return conclude(config, ranked(results, config.sweep.mode), received, terminal)


def with_absolute_paths(config: Config) -> Config:
    """Make all paths in the config absolute: Tune starts each trial in its own working directory."""
    tree = config.model_dump()
    changes: dict[str, Any] = {}
    for key in (*PATHS, *SOURCES):
        value: Any = tree
        for part in key.split("."):
            value = value[part]
        absolute = _absolute if key in PATHS else absolute_source
        if value is not None:
            changes[key] = [absolute(each) for each in value] if isinstance(value, list) else absolute(value)
    changes["reward.functions"] = [
        {**section, "path": os.path.abspath(section["path"])} if ".py:" in (section["path"] or "") else section
        for section in tree["reward"]["functions"]
    ]
    if ".py:" in (config.task.python.source or ""):
        changes["task.python.source"] = os.path.abspath(str(config.task.python.source))
    changes["tracking.to"] = [os.path.abspath(name) if ".py:" in name else name for name in config.tracking.to]
    return with_values(config, changes)


def _absolute(path: str) -> str:
    return path if uri.is_uri(path) else os.path.abspath(os.path.expanduser(path))


def open_sweep_folder(config: Config, folder: RunFolder, *, resume: bool) -> None:
    """Fetch an existing sweep folder. Raises ``UserError`` if it does not match ``resume`` or the config."""
    if uri.public(config.run.root) != config.run.root:
        raise UserError(
            "Ray Tune writes a sweep's settings into its own files: remove the secret key from run.root and set it in "
            "the environment of every node (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
        )
    exists = folder.exists()
    if not resume:
        if exists:
            raise UserError(f"{folder.shown} exists: add --resume to continue that sweep, or choose another run.name")
        folder.fetch()
        return
    if not tune.Tuner.can_restore(**tune_place(folder.place / STATE)):
        raise UserError(
            f"nothing to resume: {folder.shown} is not a sweep (it has no {STATE}/tuner.pkl): check run.root and "
            "run.name"
        )
    folder.fetch()
    folder.fetch_trials()
    recorded = load_config(folder.local / "config.yaml")
    same_date = with_values(config, {"task.date": config.task.date or recorded.task.date})
    if same_date.model_copy(update={"cluster": recorded.cluster}) != recorded:
        raise UserError(
            f"{folder.shown} was started with a different config: a resumed sweep may change cluster.* only; restore "
            "the config or choose another run.name"
        )


class StopOnUserError(tune.Stopper):
    """Stops the sweep if a trial reports an error in the config that every other trial would hit."""

    def __init__(self) -> None:
        self.found = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        self.found = self.found or "mistake" in result
        return self.found

    def stop_all(self) -> bool:
        return self.found


def tune_place(place: Place) -> dict[str, Any]:
    """Return Tune's storage arguments for a local or remote folder."""
    if isinstance(place, Remote):
        return {"path": place.path, "storage_filesystem": place.filesystem}
    return {"path": str(place)}


def build_tuner(
    config: Config,
    folder: RunFolder,
    placement: Placement,
    concurrent: int,
    *,
    resume: bool,
    other_versions: bool = False,
) -> tune.Tuner:
    """Build the tuner, or restore it if ``resume`` is set and Tune had saved its state."""
    state = folder.place / STATE
    files: Iterable[Place] = state.glob("*") if isinstance(state, Path) else state.children()
    storage, searcher = tune_place(folder.place), build_searcher(config, concurrent)

    def trial(values: dict[str, Any]) -> None:
        run_trial(values, config, placement, other_versions=other_versions)

    # The first bundle is the trial function's. It evaluates while its actors are idle and requests no resources.
    bundles = tune.PlacementGroupFactory([{}, *placement.bundles], strategy=placement.strategy)
    trainable = tune.with_resources(trial, bundles)
    # Without an experiment state Tune was killed before it saved one: start anew.
    if resume and any(path.name.startswith("experiment_state-") for path in files):
        tuner = tune.Tuner.restore(
            trainable=trainable, resume_unfinished=True, resume_errored=True, **tune_place(state)
        )
        local: Any = getattr(tuner, "_local_tuner", None)  # None behind Ray Client
        if local is not None:
            local._tune_config.search_alg = searcher  # Tune pickled that of the first cluster, with its limit
        return tuner
    return tune.Tuner(
        trainable,
        param_space=build_space(config),
        tune_config=tune.TuneConfig(
            metric=config.sweep.metric,
            mode=config.sweep.mode,
            num_samples=config.sweep.num_samples,
            search_alg=searcher,
            scheduler=build_scheduler(config, folder.local / TRIALS),
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=STATE,
            storage_path=storage["path"],
            storage_filesystem=storage.get("storage_filesystem"),
            verbose=0,
            stop=StopOnUserError(),
            callbacks=[Lines(config)],
            # With more than two, no checkpoint is deleted that another trial may be about to copy.
            checkpoint_config=tune.CheckpointConfig(num_to_keep=3),
        ),
    )


def _result(config: Config, result: tune.Result) -> TrialResult:
    report = result.metrics or {}
    error: BaseException | None = result.error
    while (inner := getattr(error, "cause", None)) is not None:  # Ray wraps the trial's exception
        error = inner
    return read_result(
        config,
        trial_id=Path(result.path).name,
        values=result.config or {},
        last_report=report,
        error=None if error is None else " ".join(str(error).split()) or type(error).__name__,
    )


def conclude(config: Config, results: list[TrialResult], received: list[int], terminal: Terminal) -> int:
    """Print the table, write the page and the best config; returns the exit code.

    Raises ``UserError`` if no trial finished and the sweep was not interrupted.
    """
    folder = config.run.folder
    best = best_of(results, config.sweep.mode)
    console = terminal.console if terminal.console.is_terminal else Console(width=WIDE)
    console.print(result_table(results, config, best))
    command = None
    if best is not None:
        best_config = with_values(config, {**best.values, "run.name": f"{folder.name}-best", "sweep": {}})
        (folder / BEST).write_text(dump_config(best_config), encoding="utf-8")
        place = str(folder / BEST) if config.run.remote is None else uri.child(config.run.shown, BEST)
        command = f"python -m rlgaf_ray.main {shlex.quote(place)}"
        terminal.on_message(f"best: {describe(best.values)}; train with this setting:\n{command}")
    page = write_page(config, results, best, command)
    shown = f"{page} and its folder" if config.run.remote is None else config.run.shown
    terminal.on_message(f"results are in {shown}")
    if received:
        terminal.on_message(f"stopped; continue with tune --resume {config.run.again}")
        return SIGNAL_EXIT_OFFSET + received[0]
    if best is None:
        notes = [result.note for result in results if result.note]
        finite = f" with a finite {config.sweep.metric}" if any(each.ending == "finished" for each in results) else ""
        why = f"; the first error: {notes[0]}" if notes else ""
        raise UserError(f"no trial of {num_trials(config)} finished{finite}{why}")
    return 0
