"""A run in a folder of a test's own, by default in one process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rlgaf_ray.config import with_values
from rlgaf_ray.loop.checkpoint import Checkpoints
from rlgaf_ray.loop.outcome import Outcome
from rlgaf_ray.loop.roles import Roles
from rlgaf_ray.run.preparation import Prepared
from rlgaf_ray.run.session import local_roles, open_loop
from rlgaf_ray.testing import RecordingCallback


def run(
    prepared: Prepared,
    folder: Path,
    roles: Roles | None = None,
    *,
    resume: bool = False,
    stop_after: int | None = None,
) -> Outcome:
    config = with_values(prepared.config, {"run.root": str(folder.parent), "run.name": folder.name})
    prepared = replace(prepared, config=config)
    checkpoints = Checkpoints(folder / "checkpoints", keep=3)
    resumed = checkpoints.newest_usable() if resume else None
    callbacks = [RecordingCallback(stop_after)]
    with open_loop(prepared, roles or local_roles(prepared), checkpoints, callbacks, resumed) as loop:
        return loop.run()
