"""Weights & Biases tracker; configured by WANDB_API_KEY, WANDB_PROJECT, WANDB_ENTITY and WANDB_MODE."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from rlgaf_ray.tracking.base import PROJECT, TrackedRun, Tracker
from rlgaf_ray.types import Metrics

SECONDS = 30.0  # timeout for starting a W&B run and for the upload at its end


class WandbTracker(Tracker):
    """Logs to a new W&B run, in the same group, on each start, resume or rollback.

    W&B drops values logged at a lower step than the last, so a rollback needs a new run. The newest run of the group
    holds every value once.
    """

    def start(self, run: TrackedRun) -> None:
        import wandb

        for folder in (run.folder / "wandb").glob("offline-run-*"):
            shutil.rmtree(folder)
        if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False):
            raise RuntimeError("not logged in: run `wandb login`, set WANDB_API_KEY, or set WANDB_MODE=offline")
        self.table = wandb.Table
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            group=run.name,
            name=run.name,
            dir=run.folder,
            config=run.config,
            save_code=False,
            # the command line and the git remote's URL may contain credentials
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                x_disable_meta=True,
                init_timeout=SECONDS,
                finish_timeout=SECONDS,
            ),
        )
        run.replay(self)

    def log(self, iteration: int, metrics: Metrics) -> None:
        self.run.log(metrics, step=iteration)

    def log_table(self, iteration: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        columns = list(rows[0])
        table = self.table(columns=columns, data=[[row[column] for column in columns] for row in rows])
        self.run.log({name: table}, step=iteration)

    def close(self) -> None:
        self.run.finish()
