"""The evaluations of one trial, its reports to Tune, and checkpoints that store them."""

from __future__ import annotations

import difflib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlgaf_ray.data.remote import Remote
from rlgaf_ray.data.storage import Place, remove
from rlgaf_ray.errors import UserError
from rlgaf_ray.evaluation.score import sweep_score, worst
from rlgaf_ray.loop.callback import Callback
from rlgaf_ray.loop.checkpoint import MANIFEST, Checkpoints
from rlgaf_ray.metrics import SCORE
from rlgaf_ray.types import Metrics

TRIAL = "trial.json"  # in a checkpoint: the trial's id and evaluations
Report = dict[str, Any]


class UnknownMetric(UserError):
    """The runs never log the metric that the sweep optimises, so every trial would fail."""


class History(Callback):
    """Collects a trial's evaluations and the newest value of the optimised metric.

    ``evaluated`` is called with each checkpoint that follows an evaluation. ``quality`` is the task's metric that the
    score is computed from.
    """

    def __init__(
        self,
        trial_id: str,
        evaluated: Callable[[History, Place], None] | None = None,
        *,
        metric: str,
        mode: str,
        quality: str,
    ) -> None:
        self.trial_id = trial_id
        self.evaluated = evaluated
        self.metric = metric
        self.quality = quality
        self.worst = -math.inf if mode == "max" else math.inf
        self.iterations = 0
        self.newest: Metrics = {}
        self.evaluations: list[tuple[int, Metrics]] = []

    def on_iteration(self, iteration: int, metrics: Metrics) -> None:
        self.iterations = iteration
        self.newest |= metrics

    def on_evaluation(self, iteration: int, metrics: Metrics) -> None:
        # After a rollback the loop repeats iterations that were evaluated before.
        kept = [item for item in self.evaluations if item[0] < iteration]
        self.evaluations = [*kept, (iteration, {k: v for k, v in metrics.items() if k.startswith("eval/")})]
        self._check_metric()

    def on_checkpoint(self, iteration: int, folder: Place) -> None:
        if self.evaluated is not None and self.evaluated_at(iteration):
            self.evaluated(self, folder)

    def on_message(self, text: str) -> None:
        print(text)  # to the trial process's log; the driver's terminal shows evaluations only

    def evaluated_at(self, iteration: int) -> bool:
        """Whether this iteration was just evaluated; the SFT model's evaluation at 0 does not count."""
        return bool(self.evaluations) and 0 < self.evaluations[-1][0] == iteration

    def report(self) -> Report:
        """Build the report for Tune: the newest evaluation, the score so far and the optimised metric."""
        row = self.evaluations[-1][1] | {SCORE: sweep_score(self.evaluations, self.quality)}
        return row | {self.metric: (self.newest | row)[self.metric], "iteration": self.iterations, "stopped": ""}

    def stopped(self, why: str) -> Report:
        """Build the last report of a trial that the guard stopped: it gets the worst score."""
        row = {SCORE: worst(self.quality), "iteration": self.iterations, "stopped": why}
        return row if self.metric == SCORE else row | {self.metric: self.worst}

    def _check_metric(self) -> None:
        """Raise ``UnknownMetric`` if the optimised metric is never logged.

        ``eval/`` metrics are known from the first evaluation on, others after the first iteration.
        """
        if self.metric == SCORE or self.metric in self.newest:
            return
        if self.metric.startswith("eval/") or self.iterations > 0:
            near = difflib.get_close_matches(self.metric, self.newest, n=1, cutoff=0.6)
            hint = f"; did you mean {near[0]}?" if near else " (docs/metrics.md lists all metrics)"
            raise UnknownMetric(f"sweep.metric={self.metric} is never logged by these runs{hint}")

    def state_dict(self, iteration: int) -> dict[str, Any]:
        """Return the state up to this iteration; after a rollback there may be later evaluations."""
        evaluations = [item for item in self.evaluations if item[0] <= iteration]
        return {"trial_id": self.trial_id, "newest": self.newest, "evaluations": evaluations}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.newest = state["newest"]
        self.evaluations = [(iteration, metrics) for iteration, metrics in state["evaluations"]]
        self.iterations = self.evaluations[-1][0]


class TrialCheckpoints(Checkpoints):
    """A trial's checkpoints, which also store its history."""

    def __init__(self, folder: Place, history: History, flush: Callable[[], None] = lambda: None) -> None:
        super().__init__(folder, keep=1, flush=flush)
        self.history = history

    def save(self, iteration: int, write: Callable[[Any], None], state: dict[str, Any], **settings: Any) -> Place:
        def write_all(folder: Place) -> None:
            write(folder)
            (folder / TRIAL).write_text(json.dumps(self.history.state_dict(iteration)), encoding="utf-8")

        return super().save(iteration, write_all, state, **settings)

    def copy_from(self, source: Path) -> str | None:
        """Replace this trial's checkpoints by ``source``, usually another trial's.

        Generator, discriminator, optimisers, random streams and history come from ``source``. Returns the id of the
        other trial, or None if ``source`` is this trial's own.
        """
        trial = json.loads((source / TRIAL).read_text(encoding="utf-8"))
        if trial["trial_id"] == self.history.trial_id and self.all():
            return None
        remove(self.folder)
        target = self.path(self.load_state(source)["iteration"])
        if isinstance(target, Remote):
            target.upload_folder(source, without=MANIFEST)
            (target / MANIFEST).upload(source / MANIFEST)
        else:
            partial = target.with_name("copied.partial")
            shutil.copytree(source, partial)
            partial.rename(target)
        return None if trial["trial_id"] == self.history.trial_id else trial["trial_id"]
