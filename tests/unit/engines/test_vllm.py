"""Checks of the vLLM engine before vLLM is loaded."""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path

import pytest

from rlgaf_ray.engines.vllm import VLLMEngine
from rlgaf_ray.engines.vllm_async import AsyncVLLMEngine
from rlgaf_ray.errors import UserError


def test_missing_vllm_raises_with_the_extra_to_install(monkeypatch: pytest.MonkeyPatch, gpt2_folder: Path) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r'pip install -e "\.\[cpu\]".* rollout\.engine=transformers'):
        VLLMEngine(gpt2_folder, max_model_len=8)


def test_more_tokens_than_positions_raise(gpt2_folder: Path) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed", exc_type=ImportError)
    with pytest.raises(UserError, match=r"takes at most 32 tokens, .* have 33: lower task\.prompt_tokens \+ task\."):
        VLLMEngine(gpt2_folder, max_model_len=33)


def test_vllms_process_that_does_not_answer_raises_a_sentence() -> None:
    engine = AsyncVLLMEngine.__new__(AsyncVLLMEngine)  # without vLLM
    engine._loop = asyncio.new_event_loop()
    thread = threading.Thread(target=engine._loop.run_forever, daemon=True)
    thread.start()

    async def answers() -> int:
        return 3

    async def hangs() -> None:
        await asyncio.Event().wait()

    assert engine._wait(answers()) == 3
    with pytest.raises(TimeoutError, match=r"^vLLM's process did not answer within 0\.01 s$"):
        engine._wait(hangs(), timeout=0.01)
    engine._loop.call_soon_threadsafe(engine._loop.stop)
    thread.join()
    for task in asyncio.all_tasks(engine._loop):
        task.cancel()
    engine._loop.run_until_complete(asyncio.sleep(0))
    engine._loop.close()
