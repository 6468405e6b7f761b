"""One trial of a sweep: a training run in Tune's trial process, with its actors in the trial's placement group."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from ray import tune
from ray.util import get_current_placement_group

from rlgaf_ray.actors.placement import Placement
from rlgaf_ray.actors.warmup import prepare_warmups
from rlgaf_ray.config import Config, uri, with_values
from rlgaf_ray.data.remote import Remote
from rlgaf_ray.data.storage import Place
from rlgaf_ray.loop.callback import Callbacks
from rlgaf_ray.loop.guard import TrainingStopped
from rlgaf_ray.loop.run_folder import TRIALS, RunFolder
from rlgaf_ray.run.preparation import Prepared, cache_folder, prepare_data
from rlgaf_ray.run.provenance import check_provenance, of_inputs, of_warmups
from rlgaf_ray.run.session import export, open_loop, ray_roles
from rlgaf_ray.sweep.history import TRIAL, History, Report, TrialCheckpoints, UnknownMetric
from rlgaf_ray.sweep.schedulers import REPORTS

ENDED = "ended.json"  # in a trial's folder: its last report
EXPLOITS = "exploits.jsonl"


def trial_config(config: Config, values: Mapping[str, Any], trial_id: str) -> Config:
    """Return the config of a trial's run: the sweep's with the trial's values and a run folder in the sweep's."""
    return with_values(
        config,
        {
            **values,
            "run.root": uri.child(config.run.remote, TRIALS) if config.run.remote else str(config.run.folder / TRIALS),
            "run.name": trial_id,
            # an evaluation is reported to Tune once the checkpoint after it is written
            "checkpoint.every": config.evaluation.every,
            "sweep": {},
        },
    )


def run_trial(values: Mapping[str, Any], config: Config, placement: Placement, *, other_versions: bool = False) -> None:
    """Train with these values and report to Tune after each evaluation; an interrupted trial resumes.

    ``other_versions`` allows resuming with other versions of the package and its libraries. If the guard stops the
    run, the trial ends normally. Raises ``ConfigError`` if the values contradict each other.
    """
    run = trial_config(config, values, tune.get_context().get_trial_id())
    folder = RunFolder(run.run)
    folder.fetch()
    with folder.mirrored():
        _run(values, run, config, placement, folder, other_versions)


def _run(
    values: Mapping[str, Any],
    run: Config,
    config: Config,
    placement: Placement,
    place: RunFolder,
    other_versions: bool,
) -> None:
    assert run.run.name is not None
    trial_id, folder = run.run.name, place.local
    population = config.sweep.scheduler == "pbt"

    def report(history: History, checkpoint: Place) -> None:
        if history.iterations < run.run.iterations:  # end() sends the last report, after the export
            send(history.report(), checkpoint if population else None)

    def send(row: Report, checkpoint: Place | None = None) -> None:
        with (folder / REPORTS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        place.flush()  # Tune may kill this process after the report
        tune.report(row, checkpoint=None if checkpoint is None else shared_checkpoint(checkpoint))

    def end(row: Report) -> None:
        row |= {"done": True}  # bypasses the scheduler: a finished trial must not exploit another one
        (folder / ENDED).write_text(json.dumps(row), encoding="utf-8")
        send(row)

    if (folder / ENDED).is_file():  # the driver was killed after the trial had ended, before Tune recorded it
        tune.report(json.loads((folder / ENDED).read_text(encoding="utf-8")))
        return
    history = History(trial_id, report, metric=config.sweep.metric, mode=config.sweep.mode, quality=run.quality)
    checkpoints = TrialCheckpoints(place.place / "checkpoints", history, place.flush)
    if shared := tune.get_checkpoint():
        with shared.as_directory() as source:
            _exploit(checkpoints, Path(source), values, folder)
    resumed = checkpoints.newest_usable() if checkpoints.all() else None
    if resumed:
        history.load_state_dict(json.loads((resumed[0] / TRIAL).read_text(encoding="utf-8")))
    cache = cache_folder(run)
    data = prepare_data(run, cache)
    if resumed:
        check_provenance(resumed[0], resumed[1], of_inputs(run, data.task), other_versions=other_versions)
    warmups = prepare_warmups(run, data.task, data.tokenizer, cache, history.on_warmup)
    if resumed:
        check_provenance(resumed[0], resumed[1], of_warmups(warmups))
    prepared, callbacks = Prepared(run, data, warmups), Callbacks([history])
    torch.set_num_threads(1)  # this process only evaluates; its actors use the cores
    try:
        group = get_current_placement_group()
        with (
            closing(ray_roles(prepared, placement, callbacks, group=group)) as roles,
            open_loop(prepared, roles, checkpoints, callbacks, resumed) as loop,
        ):
            outcome = loop.run()
    except TrainingStopped as stop:
        end(history.stopped(str(stop)))
        return
    except UnknownMetric as mistake:
        tune.report(history.stopped("") | {"mistake": str(mistake), "done": True})
        return
    export(prepared, checkpoints, outcome)
    end(history.report())


def shared_checkpoint(place: Place) -> Any:  # Any: Tune and Train have different Checkpoint types
    """Wrap a checkpoint folder for Tune, which passes it to other trials."""
    if isinstance(place, Remote):
        return tune.Checkpoint(place.path, filesystem=place.filesystem)
    return tune.Checkpoint.from_directory(str(place))


def _exploit(checkpoints: TrialCheckpoints, source: Path, values: Mapping[str, Any], folder: Path) -> None:
    """Continue from the checkpoint that population-based training assigned, and log its source and the new values."""
    donor = checkpoints.copy_from(source)
    if donor is None:
        return
    iteration = checkpoints.newest_usable()[1]["iteration"]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / EXPLOITS).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"iteration": iteration, "from": donor, "values": dict(values)}) + "\n")
