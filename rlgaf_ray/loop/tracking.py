"""What a run leaves behind while it runs: metrics.jsonl, TensorBoard events, rollouts as Parquet."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from rlgaf_ray.config.records import TrackingSection
from rlgaf_ray.data.storage import StorageError, replace_text, writing
from rlgaf_ray.evaluation.text import whole_texts
from rlgaf_ray.types import Metrics, ScoredRollout

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter
    from transformers import PreTrainedTokenizerBase

TENSORBOARD = "tensorboard"


@contextmanager
def quiet_writer() -> Iterator[None]:
    """TensorBoard's thread prints no traceback of a write that failed: its next call raises the error anyway."""
    before = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if type(arguments.thread).__name__ != "_AsyncWriterThread":
            before(arguments)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


class Tracker:
    """One row of metrics an iteration. ``start`` is the iteration that was resumed from: later rows are cut off."""

    def __init__(
        self, folder: Path, settings: TrackingSection, tokenizer: PreTrainedTokenizerBase, *, start: int = 0
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.tokenizer = tokenizer
        self.metrics_path = folder / "metrics.jsonl"
        self.writer: SummaryWriter | None = None
        with writing(folder):
            (folder / "rollouts").mkdir(exist_ok=True)
            if start:
                self.cut(start)
            else:
                self.metrics_path.write_text("")
                self._open_writer(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        # A write that failed already is what went wrong, and is told.
        with suppress(StorageError) if kind else nullcontext():
            self.close()

    def cut(self, iteration: int) -> None:
        """Throw away what was logged after this iteration."""
        kept = [row for row in self.rows() if row["iteration"] <= iteration]
        with writing(self.metrics_path):
            replace_text(self.metrics_path, "".join(json.dumps(row) + "\n" for row in kept))
        self._open_writer(iteration + 1)

    def _open_writer(self, purge_step: int) -> None:
        self.close()
        if self.settings.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(self.folder / TENSORBOARD), purge_step=purge_step)

    def rows(self) -> list[dict[str, float]]:
        if not self.metrics_path.is_file():
            return []
        lines = self.metrics_path.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]  # a full disk takes half a line

    def log(self, iteration: int, metrics: Metrics) -> None:
        """Numbers that are not finite are written as null: JSON has no word for them."""
        row = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        with writing(self.metrics_path), self.metrics_path.open("a") as file:
            file.write(json.dumps({"iteration": iteration, **row}) + "\n")
        if self.writer is not None:
            with writing(self.folder / TENSORBOARD):
                for name, value in metrics.items():
                    self.writer.add_scalar(name, value, iteration)

    def log_verdict(self, event: dict[str, Any]) -> None:
        """What the guard found and what was done, one JSON object a line of ``guard.jsonl``; never cut."""
        path = self.folder / "guard.jsonl"
        with writing(path), path.open("a") as file:
            file.write(json.dumps(event) + "\n")

    def log_rollouts(self, iteration: int, scored: Sequence[ScoredRollout]) -> None:
        share = self.settings.rollout_share
        if math.floor(iteration * share) == math.floor((iteration - 1) * share):
            return
        rollouts = [item.rollout for item in scored]
        table = pa.table(
            {
                "iteration": pa.array([iteration] * len(scored), pa.int32()),
                "prompt_id": [rollout.prompt_id for rollout in rollouts],
                "text": whole_texts(rollouts, self.tokenizer),
                "prompt_ids": pa.array([rollout.prompt_ids for rollout in rollouts], pa.list_(pa.int32())),
                "response_ids": pa.array([rollout.response_ids for rollout in rollouts], pa.list_(pa.int32())),
                "behaviour_logprobs": pa.array(
                    [rollout.behaviour_logprobs for rollout in rollouts], pa.list_(pa.float32())
                ),
                "score": pa.array([item.score for item in scored], pa.float32()),
                "finish_reason": [rollout.finish_reason for rollout in rollouts],
                "policy_version": pa.array([rollout.policy_version for rollout in rollouts], pa.int32()),
                "discriminator_version": pa.array([item.discriminator_version for item in scored], pa.int32()),
            }
        )
        path = self.folder / "rollouts" / f"{iteration:06d}.parquet"
        with writing(path):
            pq.write_table(table, path)

    def close(self) -> None:
        if self.writer is not None:
            with writing(self.folder / TENSORBOARD):
                self.writer.close()
