"""TensorBoard tracker: event files in the run's folder."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from rlgaf_ray.tracking.base import TrackedRun, Tracker
from rlgaf_ray.types import Metrics

FOLDER = "tensorboard"


class TensorBoardTracker(Tracker):
    """Writes event files; a resume or rollback purges the later steps."""

    def start(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.ending = ExitStack()
        self.ending.enter_context(quiet_writer())
        self.writer = SummaryWriter(str(run.folder / FOLDER), purge_step=run.last + 1)
        self.ending.callback(self.writer.close)

    def log(self, iteration: int, metrics: Metrics) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, iteration)

    def log_table(self, iteration: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self.writer.add_text(name, markdown(rows), iteration)

    def close(self) -> None:
        self.ending.close()


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format the rows as a Markdown table."""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([str(row[column]) for column in columns] for row in rows)]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


@contextmanager
def quiet_writer() -> Iterator[None]:
    """Suppress the traceback that TensorBoard's writer thread prints; the next call raises the error anyway."""
    before = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if type(arguments.thread).__name__ != "_AsyncWriterThread":
            before(arguments)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before
