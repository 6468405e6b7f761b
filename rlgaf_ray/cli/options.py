"""Options shared by several commands."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import wraps
from typing import Any

import click

from rlgaf_ray.cli.completion import complete

SMALL = "Apply the files' section 'small': a size for two cores. SQuAD still needs the hub or task.squad.path."
Function = Callable[..., Any]
LEVELS = ("debug", "info", "warning", "error")

words = click.argument(
    "words", nargs=-1, type=click.UNPROCESSED, shell_complete=complete, metavar="[PRESET | FILE.yaml | key=value]..."
)
small = click.option("--small", is_flag=True, help=SMALL)
resume = click.option("--resume", is_flag=True, help="Resume run.name in run.root.")
other_versions = click.option("--other-versions", is_flag=True, help="Resume despite changed package versions.")
print_config = click.option("--print-config", is_flag=True, help="Print each value with its source, and exit.")
out = click.option("--out", metavar="FOLDER", help="Output folder. Default: the first run's.")


class PositiveNumber(click.ParamType):
    """A finite number above 0; click's own ``FloatRange`` accepts nan."""

    name = "float"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = click.FLOAT.convert(value, param, ctx)
        if not 0 < number < math.inf:
            self.fail(f"{value} is not a positive number", param, ctx)
        return float(number)


def run_folders(name: str) -> Callable[[Function], Function]:
    return click.argument(name, nargs=-1, metavar="RUN...", type=click.Path())


def verbosity(function: Function) -> Function:
    """Add ``-q``, ``-v`` and ``--log-level`` to a command, and apply them while it runs."""

    @wraps(function)
    def wrapped(*, quiet: bool, verbose: int, log_level: str | None, **arguments: Any) -> Any:
        with _verbosity(quiet, log_level or {0: None, 1: "info"}.get(verbose, "debug")):
            return function(**arguments)

    options = (
        click.option("-q", "--quiet", is_flag=True, help="Print errors only."),
        click.option("-v", "--verbose", count=True, help="Show library logs; -vv: debug messages."),
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
    """Show only errors of transformers unless a log level is set: its warnings about new heads are expected."""
    import transformers

    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
