"""Markers that need something asked for, and a closing count of what was skipped and why."""

from __future__ import annotations

import os
from collections import Counter

import pytest

from rlgaf_ray import doctor

# MKL otherwise picks kernels by where an array lies in memory: two processes then differ in the last bits, and Adam
# makes whole steps of them. It reads this at its first call; Ray's workers inherit it.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


def pytest_configure(config: pytest.Config) -> None:
    if sentence := doctor.complaint():
        pytest.exit(sentence, returncode=1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "slow" not in config.option.markexpr:
        _skip(items, "slow", "takes minutes: run with -m slow")
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        if not torch.cuda.is_available():
            _skip(items, "gpu", "needs a CUDA device")


def _skip(items: list[pytest.Item], marker: str, reason: str) -> None:
    for item in items:
        if item.get_closest_marker(marker):
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.line(describe_skipped([report.longrepr for report in terminalreporter.stats.get("skipped", [])]))


def describe_skipped(places: list[tuple[str, int, str]]) -> str:
    """One line for pytest's (file, line, reason) of each skipped test: how many in all, and for each reason."""
    reasons = Counter(reason.removeprefix("Skipped: ") for _, _, reason in places)
    counts = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
    return f"skipped: {len(places)}" + (f" ({counts})" if counts else "")
