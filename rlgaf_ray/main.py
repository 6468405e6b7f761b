"""The program: ``rlgaf``, ``python -m rlgaf_ray`` and ``python -m rlgaf_ray.main``; docs/cli.md has its commands."""

from __future__ import annotations

import io
import sys
import traceback
from collections.abc import Sequence

from rlgaf_ray.cli.app import run
from rlgaf_ray.config.hidden import public
from rlgaf_ray.errors import UserError

EXIT_FAILURE, EXIT_INTERRUPTED = 1, 130
BUG = "this is a bug in rlgaf_ray: please report it, with the lines above and rlgaf_ray's version"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0: done; 1: failed; 2: wrong usage or config; 130: interrupted; 128 + n: stopped by signal n, with a checkpoint.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors != "backslashreplace":
            stream.reconfigure(errors="replace")  # "?" stands for what its encoding does not have
    try:
        return run(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        return _fail(error, error.exit_code)
    except KeyboardInterrupt:  # before or after the part of a run that a signal ends with a checkpoint
        return _fail("interrupted", EXIT_INTERRUPTED)
    except Exception:
        print(public(traceback.format_exc()), end="", file=sys.stderr)
        return _fail(BUG, EXIT_FAILURE)


def _fail(error: Exception | str, code: int) -> int:
    """One line, whatever a library put into its message, and without the keys that may stand in it."""
    line = " ".join(public(str(error)).splitlines())
    print(
        "error: " + "".join(character if character.isprintable() else "\ufffd" for character in line), file=sys.stderr
    )
    return code


def entry_point() -> None:
    sys.exit(main())


if __name__ == "__main__":
    entry_point()
