"""A small run on real reviews, shared by the integration tests: one cache, one short warm-up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlgaf_ray.config import Config, load_config

SMALL = [
    "run.iterations=8",
    "task.response_tokens=12",
    "task.imdb.splits={generator_warmup: 400, demonstrations: 200, discriminator_warmup: 100, judge: 300, "
    "held_out: 120}",
    "warmup.generator.steps=20",
    "warmup.generator.batch_size=8",
    "warmup.discriminator.steps=6",
    "warmup.discriminator.batch_size=16",
    "rollout.batch_size=16",
    "discriminator.batch_size=16",
    "evaluation.num_prompts=40",
    "evaluation.num_samples=2",
    "evaluation.every=4",
    "checkpoint.every=4",
]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
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
