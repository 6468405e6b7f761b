"""The tracker protocol, and the fan-out of metrics to a run's trackers."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

from rlgaf_ray.tracking.files import Record
from rlgaf_ray.types import Metrics, ScoredRollout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROJECT = "rlgaf_ray"  # default project or experiment, unless the service's environment variables set one
CLOSE_SECONDS = 60.0  # how long the end of a run waits for its trackers


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """The run that a tracker logs: its name, config and the history logged so far."""

    name: str
    folder: Path
    config: dict[str, Any]
    """The resolved config as a tree, without keys, tokens and credentials in URIs."""
    rows: Sequence[Mapping[str, Any]] = ()
    """Metrics logged so far, one mapping per iteration: ``iteration``, and a number or None per metric."""
    tables: Sequence[Mapping[str, Any]] = ()
    """Tables logged so far: ``iteration``, ``name`` and ``rows``."""
    rolled_back: bool = False
    """Whether the guard has just rolled the run back: gentler settings change the iterations that it repeats."""

    @property
    def last(self) -> int:
        """The last iteration with metrics; -1 for a new run."""
        return self.rows[-1]["iteration"] if self.rows else -1

    def replay(self, tracker: Tracker, *, after: int = -1) -> None:
        """Log the history after this iteration to a tracker that does not have it."""
        rows = {row["iteration"]: row for row in self.rows if row["iteration"] > after}
        tables = [table for table in self.tables if table["iteration"] > after]
        for iteration in sorted({*rows, *(table["iteration"] for table in tables)}):
            for table in tables:
                if table["iteration"] == iteration:
                    tracker.log_table(iteration, table["name"], table["rows"])
            if iteration in rows:
                metrics = {name: value for name, value in rows[iteration].items() if name != "iteration"}
                tracker.log(iteration, {name: math.nan if value is None else value for name, value in metrics.items()})


@runtime_checkable
class Tracker(Protocol):
    """Receives the metrics, tables and config of a run. A subclass only has to define ``log``.

    Each tracker is called in order from its own thread, so a slow one does not delay the run. An exception is reported
    once and disables the tracker; the run continues.
    """

    def start(self, run: TrackedRun) -> None:
        """Start logging; called again after ``close`` on a resume and, with ``run.rolled_back``, after a rollback.

        Values that were logged before but are not in ``run.rows`` no longer belong to the run. A service that cannot
        delete them needs a new run, filled by ``run.replay``.
        """
        return None

    def log(self, iteration: int, metrics: Metrics) -> None:
        """Log the metrics of one iteration; a value may be infinite or NaN."""
        ...

    def log_table(self, iteration: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log a table as rows with the same columns; called before the metrics of its iteration.

        ``rollouts`` holds up to 16 rollouts of an evaluation, ``samples`` the samples before and after training.
        """
        return None

    def close(self) -> None:
        """Flush buffered values and finish."""
        return None


class Trackers:
    """Logs to the run's record, where a failed write aborts the run, and to its trackers, whose failures do not.

    ``start`` is the iteration that the run resumes from, 0 for a new run.
    """

    def __init__(
        self,
        record: Record,
        trackers: Mapping[str, Tracker] | None = None,
        *,
        config: dict[str, Any] | None = None,
        start: int = 0,
        report: Callable[[str], None] = print,
    ) -> None:
        self.record = record
        self.config = config or {}
        self.report = report
        self.workers = [Worker(name, tracker) for name, tracker in (trackers or {}).items()]
        self._start_after(start or -1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def log(self, iteration: int, metrics: Metrics) -> None:
        self.record.log(iteration, metrics)
        self._send("log", iteration, dict(metrics))

    def log_table(self, iteration: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        if rows and self.record.log_table(iteration, name, rows):
            self._send("log_table", iteration, name, rows)

    def log_rollouts(
        self,
        iteration: int,
        scored: Sequence[ScoredRollout],
        tokenizer: PreTrainedTokenizerBase,
        columns: Mapping[str, Sequence[float | str | None]] | None = None,
    ) -> None:
        self.record.log_rollouts(iteration, scored, tokenizer, columns)

    def log_verdict(self, event: dict[str, Any]) -> None:
        self.record.log_verdict(event)

    def rewind(self, iteration: int) -> None:
        """Remove the values logged after this iteration, to which the run rolled back, and restart the trackers."""
        self._send("close")
        self._start_after(iteration, rolled_back=True)

    def close(self) -> None:
        """Wait for all trackers to finish, at most ``CLOSE_SECONDS`` in total."""
        self._send("close")
        deadline = time.monotonic() + CLOSE_SECONDS
        for worker in self.workers:
            worker.wait(max(0.0, deadline - time.monotonic()))
        self._report_failures()
        self.workers = []

    def _start_after(self, iteration: int, *, rolled_back: bool = False) -> None:
        """Start the trackers with the values logged up to this iteration (-1: none) and remove the others."""
        record = self.record
        record.truncate(iteration)
        rows, tables = record.rows(), record.tables()
        self._send("start", TrackedRun(record.folder.name, record.folder, self.config, rows, tables, rolled_back))

    def _send(self, method: str, *arguments: Any) -> None:
        for worker in self.workers:
            worker.calls.put((method, arguments))
        self._report_failures()

    def _report_failures(self) -> None:
        for worker in [worker for worker in self.workers if worker.failure is not None]:
            self.report(
                f"tracker {worker.name} failed and is disabled until the run is resumed ({worker.failure}); "
                f"{self.record.metrics_path.name} has all values"
            )
            self.workers.remove(worker)


class Worker:
    """Calls one tracker in order from a thread, which ends at the first exception or after ``wait``."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self.name = name
        self.tracker = tracker
        self.failure: str | None = None
        self.started = False
        self.calls: queue.SimpleQueue[tuple[str, tuple[Any, ...]] | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._work, name=f"tracker-{name}", daemon=True)
        self.thread.start()

    def wait(self, seconds: float) -> None:
        """Wait until the queued calls have finished."""
        self.calls.put(None)
        self.thread.join(seconds)
        if self.thread.is_alive():
            self.failure = f"no answer within {CLOSE_SECONDS:g} s at the end of the run"

    def _work(self) -> None:
        try:
            while (call := self.calls.get()) is not None:
                method, arguments = call
                if method == "start" or self.started:
                    getattr(self.tracker, method)(*arguments)
                self.started = method != "close"
        except Exception as error:  # a failure of an external service must not abort the run
            self.failure = " ".join(f"{type(error).__name__}: {error}".split())[:300]
