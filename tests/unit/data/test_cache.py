"""Only one process at a time builds a cache entry."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rlgaf_ray.data.cache import made_once
from rlgaf_ray.errors import UserError

HOLDER = """
import sys
from pathlib import Path
from rlgaf_ray.data.cache import made_once
with made_once(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_waits_and_names_the_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "warmups" / "generator"
    command = [sys.executable, "-c", HOLDER, str(target)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match=r"another process has been building .*generator for 0\.1 s"),
            made_once(target, wait=0.1),
        ):
            raise AssertionError("two at once")
        assert "waiting for it" in capsys.readouterr().out
        holder.kill()  # which releases its lock
    with made_once(target, wait=0.1):
        assert capsys.readouterr().out == ""
