"""The run's record: metrics.jsonl, tables.jsonl, guard.jsonl, and rollouts as Parquet.

The report and a resumed run read it. Unlike a tracker it is always written, and a failed write aborts the run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlgaf_ray.data.storage import replace_text, writing
from rlgaf_ray.evaluation.text import full_texts
from rlgaf_ray.types import Metrics, ScoredRollout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Record:
    """Writes the record's files. Raises ``StorageError`` if a file cannot be written.

    ``rollout_share`` is the fraction of iterations whose rollouts are written.
    """

    def __init__(self, folder: Path, *, rollout_share: float = 1.0) -> None:
        self.folder = folder
        self.rollout_share = rollout_share
        self.metrics_path = folder / "metrics.jsonl"
        self.tables_path = folder / "tables.jsonl"
        with writing(folder):
            (folder / "rollouts").mkdir(exist_ok=True)

    def truncate(self, iteration: int) -> None:
        """Remove the metrics and tables that were logged after this iteration."""
        for path in (self.metrics_path, self.tables_path):
            kept = [row for row in read_rows(path) if row["iteration"] <= iteration]
            with writing(path):
                replace_text(path, "".join(json.dumps(row) + "\n" for row in kept))

    def rows(self) -> list[dict[str, Any]]:
        """Return one mapping per iteration: ``iteration``, and a number or None per metric."""
        return read_rows(self.metrics_path)

    def tables(self) -> list[dict[str, Any]]:
        """Return one mapping per table: ``iteration``, ``name`` and ``rows``."""
        return read_rows(self.tables_path)

    def log(self, iteration: int, metrics: Metrics) -> None:
        """Append the metrics of an iteration; non-finite values, which JSON cannot represent, become null."""
        row = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        append_row(self.metrics_path, {"iteration": iteration, **row})

    def log_table(self, iteration: int, name: str, rows: Sequence[Mapping[str, Any]]) -> bool:
        """Append a table. Returns False, and writes nothing, if this iteration has a table of this name already."""
        if any((table["iteration"], table["name"]) == (iteration, name) for table in self.tables()):
            return False
        append_row(self.tables_path, {"iteration": iteration, "name": name, "rows": rows})
        return True

    def log_verdict(self, event: dict[str, Any]) -> None:
        """Append a guard verdict and the action taken to ``guard.jsonl``, which is never truncated."""
        append_row(self.folder / "guard.jsonl", event)

    def log_rollouts(
        self,
        iteration: int,
        scored: Sequence[ScoredRollout],
        tokenizer: PreTrainedTokenizerBase,
        columns: Mapping[str, Sequence[float | str | None]] | None = None,
    ) -> None:
        """Write an iteration's rollouts to a Parquet file; ``columns`` adds columns with one entry per rollout."""
        share = self.rollout_share
        if math.floor(iteration * share) == math.floor((iteration - 1) * share):
            return
        rollouts = [item.rollout for item in scored]
        table = pa.table(
            {
                "iteration": pa.array([iteration] * len(scored), pa.int32()),
                "prompt_id": [rollout.prompt_id for rollout in rollouts],
                "text": full_texts(rollouts, tokenizer),
                "prompt_ids": pa.array([rollout.prompt_ids for rollout in rollouts], pa.list_(pa.int32())),
                "response_ids": pa.array([rollout.response_ids for rollout in rollouts], pa.list_(pa.int32())),
                "behaviour_logprobs": pa.array(
                    [rollout.behaviour_logprobs for rollout in rollouts], pa.list_(pa.float32())
                ),
                "score": pa.array([item.score for item in scored], pa.float32()),
                "reward": pa.array([item.reward for item in scored], pa.float32()),
                "finish_reason": [rollout.finish_reason for rollout in rollouts],
                "policy_version": pa.array([rollout.policy_version for rollout in rollouts], pa.int32()),
                "discriminator_version": pa.array([item.discriminator_version for item in scored], pa.int32()),
                **(columns or {}),
            }
        )
        path = self.folder / "rollouts" / f"{iteration:06d}.parquet"
        with writing(path):
            pq.write_table(table, path)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a JSON Lines file, empty if it does not exist; an incomplete last line is skipped."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]  # a full disk may truncate a line


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append one row to a JSON Lines file."""
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
