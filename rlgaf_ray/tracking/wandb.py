"""Weights & Biases tracker; configured by WANDB_API_KEY, WANDB_PROJECT, WANDB_ENTITY and WANDB_MODE."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from rlgaf_ray.tracking.base import PROJECT, TrackedRun, Tracker
from rlgaf_ray.types import Metrics

RUN_ID_FILE = "wandb_run.txt"  # in the run's folder: the id of its W&B run
SECONDS = 30.0  # timeout for starting a W&B run and for the upload at its end


class WandbTracker(Tracker):
    """Logs to one W&B run, which a resumed run continues; after a rollback to a new one in the same group.

    W&B keeps the first values of a step, so those of repeated iterations are not logged. An offline run is replaced.
    """

    def start(self, run: TrackedRun) -> None:
        import wandb

        mode, id_file = wandb.setup().settings.mode, run.folder / RUN_ID_FILE
        replaced = list((run.folder / "wandb").glob("offline-run-*"))
        uploaded = any(path for folder in replaced for path in folder.glob("*.sync*"))
        continues = bool(replaced) and not uploaded if mode == "offline" else not run.rolled_back
        for folder in replaced:
            shutil.rmtree(folder)
        if mode == "online" and not wandb.login(prompt=False):
            raise RuntimeError("not logged in: run `wandb login`, set WANDB_API_KEY, or set WANDB_MODE=offline")
        self.table = wandb.Table
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            group=run.name,
            name=run.name,
            id=id_file.read_text(encoding="utf-8") if continues and id_file.is_file() else None,
            resume="allow",
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
        self.first = self.run.starting_step
        id_file.write_text(self.run.id, encoding="utf-8")
        run.replay(self)

    def log(self, iteration: int, metrics: Metrics) -> None:
        if iteration >= self.first:
            self.run.log(metrics, step=iteration)

    def log_table(self, iteration: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        columns = list(rows[0])
        if iteration >= self.first:
            table = self.table(columns=columns, data=[[row[column] for column in columns] for row in rows])
            self.run.log({name: table}, step=iteration)

    def close(self) -> None:
        self.run.finish()
