"""Markers that need something asked for, a closing count of what was skipped, and a small run on real reviews."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from rlgaf_ray import doctor
from rlgaf_ray.config import Config, load_config
from tests.patience import pytest_timeout_set_timer  # noqa: F401 (a hook)

# MKL otherwise picks kernels by where an array lies in memory: two processes then differ in the last bits, and Adam
# makes whole steps of them. It reads this at its first call; Ray's workers inherit it.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

UNIT = Path(__file__).parent / "unit"
LEFT_OUT = {"slow": "takes long: make test-all", "chaos": "injects faults: make chaos"}

SMALL = [
    "run.iterations=8",
    "task.response_tokens=12",
    "task.imdb.splits={base: 400, demonstrations: 200, judge_validation: 300, judge_test: 300, validation: 120, "
    "test: 120}",
    "model.generator=tiny-gpt2",
    "warmup.generator.steps=20",
    "warmup.generator.batch_size=8",
    "warmup.sft.steps=2",
    "warmup.discriminator.steps=2",
    "rollout.num_workers=1",  # of which most tests need no more; each process takes seconds to start
    "rollout.batch_size=16",
    "discriminator.batch_size=16",
    "discriminator.contrast_samples=1",
    "discriminator.frozen_layers=2",  # of the tiny model's four
    "discriminator.learning_rate=3e-4",
    "generator.learning_rate=1e-4",  # two updates shall be seen
    "evaluation.num_prompts=40",
    "evaluation.num_samples=2",
    "evaluation.every=4",
    "evaluation.embeddings=false",  # fitting their judge takes half a minute
    "checkpoint.every=4",
]


def pytest_configure(config: pytest.Config) -> None:
    if sentence := doctor.complaint():
        pytest.exit(sentence, returncode=1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # the long files first: the short ones then fill whichever process is free (make test)
    items.sort(key=lambda item: item.path.is_relative_to(UNIT))
    for marker, reason in LEFT_OUT.items():
        if marker not in config.option.markexpr:
            _skip(items, marker, reason)
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


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by all processes of pytest-xdist: the program makes what it caches once, whoever comes first."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = tmp_path_factory.getbasetemp().parent / "cache"
        shared.mkdir(exist_ok=True)
        return shared
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def small_under(cache: Path):
    """Makes the overrides of a small run under a root; later ones win."""

    def overrides(root: Path, *more: str) -> list[str]:
        return [*SMALL, f"warmup.cache={cache}", f"run.root={root}", *more]

    return overrides


@pytest.fixture
def small(small_under, tmp_path: Path):
    return lambda *more: small_under(tmp_path, *more)


@pytest.fixture
def small_config(small):
    def make(*more: str) -> Config:
        return load_config(None, small(*more))

    return make


@pytest.fixture(scope="session")
def rows_of():
    """Reads a run's metrics without those that depend on the clock."""
    per_second = ("rollout/tokens_per_second", "rollout/samples_per_second")
    timed = ("time/", "weights/check_seconds", "weights/load_seconds", *per_second)

    def read(folder: Path) -> list[dict[str, float]]:
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [{name: value for name, value in row.items() if not name.startswith(timed)} for row in rows]

    return read
