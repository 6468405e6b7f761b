"""Stop a run on Ctrl-C or SIGTERM."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rlgaf_ray.loop.callback import Callback

SIGNAL_EXIT_OFFSET = 128  # exit code of a process ended by signal n: 128 + n
TWICE_SECONDS = 1.0  # ``timeout`` sends its signal to the process and to its group, so it may arrive twice


class Stop(Callback):
    """Stops a run after the current iteration, with a checkpoint; exits immediately before the loop or if it failed."""

    def __init__(self) -> None:
        self.number = 0
        self.started = False

    def __call__(self, number: int) -> None:
        self.number = number
        if not self.started:
            print(f"stopped by {signal.Signals(number).name} before training started", file=sys.stderr)
            sys.exit(self.exit_code)
        self.stop_requested = True

    @property
    def exit_code(self) -> int:
        return SIGNAL_EXIT_OFFSET + self.number

    @contextmanager
    def training(self, *, start: int, total: int, first: str) -> Iterator[None]:
        self.started = True
        try:
            yield
        except BaseException:
            self.started = False
            raise


@contextmanager
def stop_on_signals(stop_softly: Callable[[int], None]) -> Iterator[list[int]]:
    """Call ``stop_softly`` with the number of the first SIGINT or SIGTERM; a second one kills the process.

    One that follows the first within ``TWICE_SECONDS`` is ignored.
    """
    received: list[int] = []
    first = 0.0

    def stop(number: int, frame: object) -> None:
        nonlocal first
        if not received:
            first = time.monotonic()
            received.append(number)
            stop_softly(number)
        elif time.monotonic() - first > TWICE_SECONDS:
            os._exit(SIGNAL_EXIT_OFFSET + number)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    except SystemExit:
        if received:  # Ray turns the exit code into 1 if it was waiting
            raise SystemExit(SIGNAL_EXIT_OFFSET + received[0]) from None
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
