"""Trackio, set by its own variables: TRACKIO_DIR, TRACKIO_PROJECT, TRACKIO_SPACE_ID."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from rlgaf_ray.tracking.base import PROJECT, TrackedRun, Tracker
from rlgaf_ray.types import Metrics

NOTE = "trackio_run.txt"  # in the run's folder: the id of its Trackio run


class TrackioTracker(Tracker):
    """One Trackio run; a resume or rollback replaces it by one with the rows that count."""

    def start(self, run: TrackedRun) -> None:
        import trackio

        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        note = run.folder / NOTE
        replaced = note.read_text(encoding="utf-8") if note.is_file() else None
        with suppress(ValueError):  # no such project yet
            for other in trackio.Api().runs(project):
                if other.id == replaced:
                    other.delete()
        self.table = trackio.Table
        self.run = trackio.init(
            project, name=run.name, config=run.config, embed=False, auto_log_gpu=False, auto_log_cpu=False
        )
        note.write_text(self.run.id, encoding="utf-8")
        run.replay(self)

    def log(self, iteration: int, metrics: Metrics) -> None:
        self.run.log(dict(metrics), step=iteration)

    def log_table(self, iteration: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self.run.log({name: self.table(data=[dict(row) for row in rows])}, step=iteration)

    def close(self) -> None:
        self.run.finish()
