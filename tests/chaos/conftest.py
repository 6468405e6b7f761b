"""Fixtures of the fault-injection tests; a table at the end of the session lists all injected faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest
from rich.console import Console
from rich.table import Table

from tests.chaos.program import Run

COLUMNS = ("fault", "times injected", "detected after", "recovered after", "iterations repeated", "rollouts missing")
PROPERTY = "fault"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests that are not slow as chaos: they run with ``make chaos`` only."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and not item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.chaos)


@pytest.fixture
def record(record_property) -> Callable[..., None]:
    """Add a fault to the final table: the seconds until each was detected and until the run recovered.

    ``missing`` is the number of missing rollouts at the end; the test fails if there are any.
    """

    def row(
        fault: str,
        *,
        times: int = 1,
        detected: Sequence[float] = (),
        recovered: Sequence[float] = (),
        repeated: int = 0,
        missing: int = 0,
    ) -> None:
        record_property(PROPERTY, [fault, str(times), span(detected), span(recovered), str(repeated), str(missing)])
        assert missing == 0, f"{fault}: {missing} rollouts are missing"

    return row


@pytest.fixture
def start(request: pytest.FixtureRequest) -> Iterator[Callable[..., Run]]:
    """Start a ``Run``; its remaining processes are killed at the end of the test."""
    runs: list[Run] = []

    def begin(*arguments, **environment) -> Run:
        runs.append(Run(*arguments, **environment))
        return runs[-1]

    yield begin
    for run in runs:
        run.descendants()
        for process in run.remaining():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        run.process.kill()
        run.process.wait()


def span(seconds: Sequence[float]) -> str:
    if not seconds:
        return "-"
    low, high = f"{min(seconds):.1f}", f"{max(seconds):.1f}"
    return f"{high} s" if low == high else f"{low} to {high} s"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.getreports(outcome)]
    rows = [value for report in reports for name, value in report.user_properties if name == PROPERTY]
    if not rows:
        return
    table = Table(*COLUMNS, title="faults", title_justify="left")
    for row in rows:
        table.add_row(*row)
    console = Console(width=120)
    with console.capture() as capture:
        console.print(table)
    terminalreporter.line(capture.get())
