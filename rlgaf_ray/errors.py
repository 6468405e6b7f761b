"""Errors that one sentence explains. Everything else is a bug and keeps its traceback."""

from __future__ import annotations


class UserError(Exception):
    """What a user can act on: a mistake, a failed machine, a run that the guard stopped.

    The message is one sentence that names the culprit and the fix. The command line prints it alone and ends with
    ``exit_code``.
    """

    exit_code = 1


class UsageError(UserError):
    """A wrong command, config or URI, found before anything started."""

    exit_code = 2
