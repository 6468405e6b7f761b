"""Errors shown to the user as one sentence. Any other exception is a bug and keeps its traceback."""

from __future__ import annotations


class UserError(Exception):
    """An error that the user can act on: a mistake, a failed machine, a run stopped by the guard.

    The message is one sentence that names the culprit and the fix. The command line prints only the message and exits
    with ``exit_code``.
    """

    exit_code = 1


class UsageError(UserError):
    """An invalid command, config or URI, detected before the run starts."""

    exit_code = 2
