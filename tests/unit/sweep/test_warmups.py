"""The data of a sweep's warm-ups."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlgaf_ray.config import Config
from rlgaf_ray.report.console import Terminal
from rlgaf_ray.run.preparation import Data
from rlgaf_ray.sweep import warmups
from rlgaf_ray.sweep.warmups import prepare_variants
from tests.families import save_family
from tests.unit.run.test_vocabulary import LLAMA, config


def test_variants_of_one_task_share_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[int] = []
    original = warmups.prepare_data

    def counted(variant: Config, cache: Path) -> Data:
        prepared.append(variant.task.response_tokens)
        return original(variant, cache)

    monkeypatch.setattr(warmups, "prepare_data", counted)
    words = ["sweep.space={run.seed: {grid: [0, 1]}, task.response_tokens: {grid: [30, 40]}}"]
    words += [f"warmup.cache={tmp_path / 'cache'}", "evaluation.num_prompts=10"]
    found = prepare_variants(config(save_family(LLAMA, tmp_path / "model"), *words), Terminal())
    assert [(variant.run.seed, variant.task.response_tokens) for variant, _ in found] == [
        (seed, tokens) for seed in (0, 1) for tokens in (30, 40)
    ]
    assert prepared == [30, 40] and [data.task.max_tokens for _, data in found] == [70, 80, 70, 80]
