"""Ends a test that hangs, and not one whose machine is slow or busy: it watches for progress instead of the clock.

A test makes progress while it, or a process that it started, computes or waits for a core. One without progress for
``QUIET_SECONDS`` fails; so does one that takes longer than pytest-timeout's ``timeout``, which is for endless loops.
Waits in tests therefore have no limits of their own (``wait_until``, ``subprocess.run`` without ``timeout``).
"""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import pytest_timeout

HANGS_AFTER = 1800.0  # for what asks for a limit in seconds
QUIET_SECONDS = 300.0
CHECKS = 5  # in that time
SCHEDULED = Path("/proc/self/schedstat").exists()  # elsewhere waiting for a core is not counted
BUSY_SHARE = 0.1  # of one core; Ray's own processes take less while nothing runs


def wait_until(
    condition: Callable[[], bool], what: str, *, process: subprocess.Popen | None = None, pause: float = 0.2
) -> None:
    """Until the condition holds. Fails where ``process``, which is to bring it about, ends before."""
    while not condition():
        if process is not None and process.poll() is not None and not condition():
            raise AssertionError(f"no {what}: the program ended with {process.returncode}")
        time.sleep(pause)


def core_seconds() -> dict[int, float]:
    """Seconds on a core, or waiting for one, of each thread of this process and of its descendants."""
    program = psutil.Process()
    found: dict[int, float] = {}
    for process in (program, *program.children(recursive=True)):
        try:
            if not SCHEDULED:
                found[process.pid] = sum(process.cpu_times()[:2])
                continue
            for thread in Path(f"/proc/{process.pid}/task").iterdir():
                running, waiting, _ = (thread / "schedstat").read_text().split()
                found[int(thread.name)] = (int(running) + int(waiting)) / 1e9
        except (OSError, psutil.Error):  # it has ended
            continue
    return found


class Watch:
    """Call ``look`` every ``pause`` seconds: True once ``CHECKS`` looks in a row found no progress."""

    def __init__(self, quiet_seconds: float) -> None:
        self.pause = quiet_seconds / CHECKS
        self.quiet = 0
        self.before: dict[int, float] | None = None
        self.moment = time.monotonic()

    def look(self) -> bool:
        now, moment = core_seconds(), time.monotonic()
        if self.before is not None:
            used = sum(seconds - self.before.get(thread, 0.0) for thread, seconds in now.items())
            self.quiet = 0 if used >= BUSY_SHARE * (moment - self.moment) else self.quiet + 1
        self.before, self.moment = now, moment
        return self.quiet >= CHECKS


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: pytest_timeout.Settings) -> bool | None:
    """In the place of pytest-timeout's own timer, where signals can be had."""
    if settings.method != "signal" or threading.current_thread() is not threading.main_thread():
        return None
    watch, deadline = Watch(QUIET_SECONDS), time.monotonic() + settings.timeout

    def check(number: int, frame: object) -> None:
        __tracebackhide__ = True
        if time.monotonic() >= deadline:
            pytest_timeout.timeout_sigalrm(item, settings)
        elif watch.look():
            pytest_timeout.dump_stacks(item.config.get_terminal_writer())
            pytest.fail(f"no progress for {QUIET_SECONDS:g} s: the test and its processes wait and compute nothing")
        else:
            arm()

    def arm() -> None:
        signal.setitimer(signal.ITIMER_REAL, max(0.01, min(watch.pause, deadline - time.monotonic())))

    def cancel() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)

    item.cancel_timeout = cancel  # type: ignore[attr-defined]
    signal.signal(signal.SIGALRM, check)
    arm()
    return True
