"""A small run on real reviews, shared by the integration tests: one cache, one short warm-up."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlgaf_ray.config import Config, load_config

SMALL = [
    "run.iterations=8",
    "task.response_tokens=12",
    "task.splits={generator_warmup: 400, demonstrations: 200, discriminator_warmup: 100, judge: 300, held_out: 120}",
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


@pytest.fixture
def small(cache: Path, tmp_path: Path):
    """Makes the overrides of a small run under ``tmp_path``; later ones win."""

    def overrides(*more: str) -> list[str]:
        return [*SMALL, f"warmup.cache={cache}", f"run.root={tmp_path}", *more]

    return overrides


@pytest.fixture
def small_config(small):
    def make(*more: str) -> Config:
        return load_config(None, small(*more))

    return make
