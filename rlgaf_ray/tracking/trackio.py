"""Trackio tracker; configured by TRACKIO_DIR, TRACKIO_PROJECT and TRACKIO_SPACE_ID."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from rlgaf_ray.tracking.base import PROJECT, TrackedRun, Tracker
from rlgaf_ray.types import Metrics

RUN_ID_FILE = "trackio_run.txt"  # in the run's folder: the id of its Trackio run


class TrackioTracker(Tracker):
    """Logs to one Trackio run; a resume or rollback replaces it by a new run with the remaining rows."""

    def start(self, run: TrackedRun) -> None:
        import trackio

        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        id_file = run.folder / RUN_ID_FILE
        replaced = id_file.read_text(encoding="utf-8") if id_file.is_file() else None
        with suppress(ValueError):  # the project does not exist yet
            for other in trackio.Api().runs(project):
                if other.id == replaced:
                    other.delete()
        self.table = trackio.Table
        self.run = trackio.init(
            project, name=run.name, config=run.config, embed=False, auto_log_gpu=False, auto_log_cpu=False
        )
        id_file.write_text(self.run.id, encoding="utf-8")
        run.replay(self)

    def log(self, iteration: int, metrics: Metrics) -> None:
        self.run.log(dict(metrics), step=iteration)

    def log_table(self, iteration: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self.run.log({name: self.table(data=[dict(row) for row in rows])}, step=iteration)

    def close(self) -> None:
        self.run.finish()
