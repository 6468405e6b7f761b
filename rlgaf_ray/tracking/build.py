"""The table of trackers, and the trackers that ``tracking.to`` names."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from itertools import chain, count
from pathlib import Path

from rlgaf_ray.config.hidden import public_values
from rlgaf_ray.config.schema import Config
from rlgaf_ray.errors import UserError
from rlgaf_ray.plugins import load_object
from rlgaf_ray.tracking.base import Tracker, Trackers
from rlgaf_ray.tracking.files import Record
from rlgaf_ray.tracking.mlflow import MlflowTracker
from rlgaf_ray.tracking.tensorboard import TensorBoardTracker
from rlgaf_ray.tracking.trackio import TrackioTracker
from rlgaf_ray.tracking.wandb import WandbTracker

# each name is that of the package it needs, and of the extra that brings it
TRACKERS: dict[str, Callable[[], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
    "mlflow": MlflowTracker,
    "trackio": TrackioTracker,
}


def make_trackers(chosen: Sequence[str | Tracker]) -> dict[str, Tracker]:
    """One tracker for each name, ``module:Class`` or tracker, not started yet. Raises ``UserError``.

    A tracker is called by its class; a second one of a class that is passed in, ``Class_2``.
    """
    trackers: dict[str, Tracker] = {}
    for item in chosen:
        if isinstance(item, str):
            trackers[item] = _named(item)
        else:
            name = type(item).__name__
            names = chain([name], (f"{name}_{number}" for number in count(2)))
            trackers[next(each for each in names if each not in trackers)] = item
    return trackers


def open_trackers(
    config: Config,
    folder: Path,
    more: Sequence[str | Tracker] = (),
    *,
    start: int = 0,
    report: Callable[[str], None] = print,
) -> Trackers:
    """The record in this folder and the trackers of the config, with ``more`` beside them. Raises ``UserError``."""
    return Trackers(
        Record(folder, rollout_share=config.tracking.rollout_share),
        make_trackers([*config.tracking.to, *more]),
        config=public_values(config.model_dump(mode="json")),
        start=start,
        report=report,
    )


def _named(name: str) -> Tracker:
    if name in TRACKERS:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"tracking.to={name}: {name} is not installed: pip install 'rlgaf_ray[{name}]'")
        return TRACKERS[name]()
    if ":" not in name:
        raise UserError(f"tracking.to={name} is unknown: take {', '.join(TRACKERS)}, or module:Class of your own")
    try:
        made = load_object(name)()
    except UserError as error:
        raise UserError(f"tracking.to={name}: {error}") from error
    except Exception as error:  # of the class's own code
        raise UserError(f"tracking.to={name}: the tracker cannot be made: {type(error).__name__}: {error}") from error
    if not isinstance(made, Tracker):
        raise UserError(f"tracking.to={name} is no tracker: derive it from rlgaf_ray.Tracker")
    return made
