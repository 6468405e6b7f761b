"""Build the trackers that ``tracking.to`` names."""

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

# Each name is also that of the required package and of the extra that installs it.
TRACKERS: dict[str, Callable[[], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
    "mlflow": MlflowTracker,
    "trackio": TrackioTracker,
}


def make_trackers(chosen: Sequence[str | Tracker]) -> dict[str, Tracker]:
    """Build one tracker, not started yet, for each name, ``module:Class`` or instance. Raises ``UserError``.

    An instance is named after its class; further instances of the same class are ``Class_2``, ``Class_3``, ...
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
    """Open the record in this folder, the config's trackers and ``more``. Raises ``UserError``."""
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
            raise UserError(f'tracking.to={name}: {name} is not installed: pip install -e ".[{name}]"')
        return TRACKERS[name]()
    if ":" not in name:
        raise UserError(f"tracking.to={name} is unknown: use {', '.join(TRACKERS)}, or module:Class for your own")
    try:
        tracker = load_object(name)()
    except UserError as error:
        raise UserError(f"tracking.to={name}: {error}") from error
    except Exception as error:  # raised by the class's constructor
        raise UserError(f"tracking.to={name}: cannot create the tracker: {type(error).__name__}: {error}") from error
    if not isinstance(tracker, Tracker):
        raise UserError(f"tracking.to={name} is not a tracker: derive it from rlgaf_ray.Tracker")
    return tracker
