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

    0: success; 1: failure; 2: invalid usage or config; 130: interrupted; 128 + n: stopped by signal n (checkpointed).
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors != "backslashreplace":
            stream.reconfigure(errors="replace")  # print "?" for characters that the encoding lacks
    try:
        return run(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        return _fail(error, error.exit_code)
    except KeyboardInterrupt:  # outside the training loop, whose signal handler saves a checkpoint
        return _fail("interrupted", EXIT_INTERRUPTED)
    except Exception:
        print(public(traceback.format_exc()), end="", file=sys.stderr)
        return _fail(BUG, EXIT_FAILURE)


def _fail(error: Exception | str, code: int) -> int:
    """Print the error as one printable line without credentials, and return the code."""
    line = " ".join(public(str(error)).splitlines())
    print(
        "error: " + "".join(character if character.isprintable() else "\ufffd" for character in line), file=sys.stderr
    )
    return code


def entry_point() -> None:
    sys.exit(main())


if __name__ == "__main__":
    entry_point()
