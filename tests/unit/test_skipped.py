"""The suite's own closing line on skipped tests, from a suite made for it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

SUITE = """
import pytest

def test_passes(): pass

@pytest.mark.skip(reason="no network")
def test_a(): pass

@pytest.mark.skip(reason="no network")
def test_b(): pass

@pytest.mark.slow
def test_c(): pass
"""


def closing_line(folder: Path, *arguments: str) -> str:
    shutil.copy(Path(__file__).parents[1] / "conftest.py", folder)
    settings = folder / "pytest.ini"
    settings.write_text("[pytest]\nmarkers = slow: takes minutes\n")
    (folder / "test_suite.py").write_text(SUITE)
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", str(settings), str(folder), *arguments]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("skipped: ")]
    return line


def test_skipped_tests_are_counted_by_reason(tmp_path: Path) -> None:
    assert closing_line(tmp_path) == "skipped: 3 (2 x no network; 1 x takes long: make test-all)"


def test_slow_tests_run_when_asked_for(tmp_path: Path) -> None:
    assert closing_line(tmp_path, "-m", "slow") == "skipped: 0"
