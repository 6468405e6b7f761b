"""Checks of the vLLM engine before vLLM is loaded."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rlgaf_ray.engines.vllm import VLLMEngine
from rlgaf_ray.errors import UserError


def test_missing_vllm_raises_with_the_extra_to_install(monkeypatch: pytest.MonkeyPatch, gpt2_folder: Path) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r'pip install -e "\.\[cpu\]".* rollout\.engine=transformers'):
        VLLMEngine(gpt2_folder, max_model_len=8)


def test_more_tokens_than_positions_raise(gpt2_folder: Path) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed", exc_type=ImportError)
    with pytest.raises(UserError, match=r"takes at most 32 tokens, .* have 33: lower task\.prompt_tokens \+ task\."):
        VLLMEngine(gpt2_folder, max_model_len=33)
