"""Sampling, saving and loading contrast samples of the base model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rlgaf_ray.actors import contrast
from rlgaf_ray.actors.contrast import load_contrast, sample_contrast, save_contrast
from rlgaf_ray.config import load_config
from rlgaf_ray.engines.build import sampling_settings
from rlgaf_ray.engines.seeds import rollout_seed
from rlgaf_ray.engines.transformers import TransformersEngine
from rlgaf_ray.models.generator import build_tiny_gpt2
from rlgaf_ray.types import Demonstration, Prompt

PROMPTS = [np.array([row, row + 1], np.int32) for row in range(5)]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    build_tiny_gpt2(vocab_size=16, end_of_text_id=0, seed=0).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_contrast_matches_the_base_model_in_prompt_order(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(None, ["discriminator.contrast_samples=3", "task.response_tokens=6"])
    engine = TransformersEngine(base)
    sampling = sampling_settings(config, samples_per_prompt=1)
    expected = [
        engine.generate([Prompt(0, PROMPTS[row])], sampling, seeds=[rollout_seed(7, 0, 3 * row + each)])[0].response_ids
        for row in range(5)
        for each in range(3)
    ]
    monkeypatch.setattr(contrast, "BATCH", 2)  # the last batch is not full
    save_contrast(sample_contrast(base, PROMPTS, config, seed=7), tmp_path / "contrast")
    found = load_contrast(tmp_path / "contrast", [Demonstration(ids, ids) for ids in PROMPTS])
    assert [item.response_ids.tolist() for item in found] == [ids.tolist() for ids in expected]
    assert [item.prompt_ids.tolist() for item in found] == [ids.tolist() for ids in PROMPTS for _ in range(3)]


def test_contrast_round_trips_responses_of_different_lengths(tmp_path: Path) -> None:
    responses = [np.array(ids, np.int32) for ids in ([1], [2, 3, 4], [5, 6], [7])]
    save_contrast(responses, tmp_path)
    found = load_contrast(tmp_path, [Demonstration(ids, ids) for ids in PROMPTS[:2]])
    assert [item.response_ids.tolist() for item in found] == [[1], [2, 3, 4], [5, 6], [7]]
    assert all(item.response_ids.dtype == np.int32 for item in found)
