"""Ray Tune inside this program: its settings, the program's signals, and trials that Ray has killed."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from ray.exceptions import OutOfMemoryError

from rlgaf_ray.errors import UserError
from rlgaf_ray.run.signals import stop_on_signals


@contextmanager
def interruptible_tune() -> Iterator[list[int]]:
    """Context in which a signal stops Ray Tune (forwarded as SIGUSR1); yields the list of received signals.

    Raises ``UserError`` if Ray has killed a trial for its memory, which ends the search (Ray 2.60).
    """
    with tune_settings(), stop_on_signals(lambda number: signal.raise_signal(signal.SIGUSR1)) as received:
        try:
            yield received
        except RuntimeError as error:
            if not isinstance(error.__cause__, OutOfMemoryError):
                raise
            raise UserError(
                "Ray has killed a trial because this machine ran out of memory: end other programs or run fewer trials "
                "at a time, and continue with --resume"
            ) from error


@contextmanager
def tune_settings() -> Iterator[None]:
    """Context in which Ray Tune is quiet and stops on SIGUSR1, sent by this program's signal handlers."""
    settings = {
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # metrics.jsonl and TensorBoard hold more
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_GLOBAL_CHECKPOINT_S": "1",  # a killed driver loses at most one second
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    warnings.filterwarnings("ignore", "Consider boosting PBT")  # it suggests reusing actors; trials restart theirs
    previous = signal.signal(signal.SIGUSR1, signal.default_int_handler)  # until Tune installs its handler
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, previous)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
