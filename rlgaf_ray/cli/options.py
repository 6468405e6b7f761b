"""Options that several commands share."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import wraps
from typing import Any

import click

from rlgaf_ray.cli.completion import complete

Function = Callable[..., Any]
LEVELS = ("debug", "info", "warning", "error")

words = click.argument(
    "words", nargs=-1, type=click.UNPROCESSED, shell_complete=complete, metavar="[PRESET | FILE.yaml | key=value]..."
)
small = click.option("--small", is_flag=True, help="With the section 'small': two cores, no hub.")
resume = click.option("--resume", is_flag=True, help="Go on with run.name in run.root.")
other_versions = click.option("--other-versions", is_flag=True, help="With --resume: accept other package versions.")
print_config = click.option("--print-config", is_flag=True, help="Print each value and where it was set, and exit.")
out = click.option("--out", metavar="FOLDER", help="Where to write; by default the first run's folder.")


def run_folders(name: str) -> Callable[[Function], Function]:
    return click.argument(name, nargs=-1, metavar="RUN...", type=click.Path())


def verbosity(function: Function) -> Function:
    """Adds ``-q``, ``-v`` and ``--log-level``, which hold while the command runs."""

    @wraps(function)
    def wrapped(*, quiet: bool, verbose: int, log_level: str | None, **arguments: Any) -> Any:
        with _verbosity(quiet, log_level or {0: None, 1: "info"}.get(verbose, "debug")):
            return function(**arguments)

    options = (
        click.option("-q", "--quiet", is_flag=True, help="Print errors only."),
        click.option("-v", "--verbose", count=True, help="Show the libraries' log; -vv: debug messages."),
        click.option("--log-level", type=click.Choice(LEVELS), metavar="LEVEL", help="debug, info, warning or error."),
    )
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


@contextmanager
def _verbosity(quiet: bool, level: str | None) -> Iterator[None]:
    if level is not None:
        logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        os.environ |= {"VLLM_LOGGING_LEVEL": level.upper(), "TRANSFORMERS_VERBOSITY": level}
    if not quiet:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield


def quiet_transformers() -> None:
    """It reports new heads and shards; what matters of it is an exception. ``--log-level`` asks for all of it."""
    import transformers

    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
