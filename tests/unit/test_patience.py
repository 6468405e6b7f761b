"""The end of tests that hang, from a suite made for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import wait_until

CONFTEST = """
from tests import patience
from tests.patience import pytest_timeout_set_timer

patience.QUIET_SECONDS = 1.0
"""
SUITE = """
import subprocess, sys, time
import pytest

COMPUTES = "import time; end = time.monotonic() + 4\\nwhile time.monotonic() < end: pass"

def test_hangs():
    time.sleep(600)

def test_waits_for_a_process_that_computes():
    subprocess.run([sys.executable, "-c", COMPUTES], check=True)

@pytest.mark.timeout(3)
def test_never_ends():
    while True:
        pass
"""


def test_a_test_without_progress_fails_and_one_that_is_slow_does_not(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\ntimeout = 600\n")
    (tmp_path / "test_suite.py").write_text(SUITE)
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", str(tmp_path / "pytest.ini"), "-rA"]
    repository = Path(__file__).parents[2]
    done = subprocess.run([*words, str(tmp_path)], capture_output=True, text=True, cwd=repository, check=False)
    assert "Failed: no progress for 1 s" in done.stdout, done.stdout
    assert "Failed: Timeout (>3.0s)" in done.stdout, done.stdout
    endings = {
        line.split("::")[1].split()[0]: line.split()[0] for line in done.stdout.splitlines() if "py::test_" in line
    }
    assert endings == {
        "test_hangs": "FAILED",
        "test_waits_for_a_process_that_computes": "PASSED",
        "test_never_ends": "FAILED",
    }


def test_a_wait_ends_with_the_process_that_it_waits_for() -> None:
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(AssertionError, match="no answer: the program ended with 3"):
        wait_until(lambda: False, "answer", process=process, pause=0.01)
