"""The initial model of the training tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlgaf_ray.models.generator import build_tiny_gpt2

VOCABULARY = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    build_tiny_gpt2(vocab_size=VOCABULARY, end_of_text_id=0, seed=3).save_pretrained(path)
    return path
