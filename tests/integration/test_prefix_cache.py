"""vLLM's prefix cache under Monte-Carlo search: the same completions with it and without, and what it saves."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from rlgaf_ray.actors.cluster import ray_session
from rlgaf_ray.config import Config
from rlgaf_ray.engines.vllm import CPU_BLOCK_TOKENS, CPU_STEP_TOKENS, VLLMEngine
from rlgaf_ray.types import Prompt, Rollout, SamplingSettings

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

POSITIONS, NEW_TOKENS, VOCABULARY = 128, 6, 60


class Counting(VLLMEngine):
    """The engine with its counters behind a method, as an actor needs it."""

    def counts(self) -> tuple[int, int]:
        return self.prompt_tokens, self.cached_prompt_tokens


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[bool, ray.actor.ActorHandle]]:
    """An engine with the prefix cache and one without, each in a process of its own."""
    folder: Path = tmp_path_factory.mktemp("model")
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=POSITIONS, n_embd=64, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(folder)
    with ray_session(Config()):
        actor: Any = ray.remote(num_cpus=0)(Counting)
        yield {
            caching: actor.remote(folder, max_model_len=POSITIONS, kv_cache_mib=64, threads=1, prefix_caching=caching)
            for caching in (True, False)
        }


def prompts_of(length: int, count: int) -> list[Prompt]:
    rng = np.random.default_rng(length)
    return [Prompt(row, rng.integers(1, VOCABULARY, length).astype(np.int32)) for row in range(count)]


def complete(engine: ray.actor.ActorHandle, prompts: list[Prompt], samples: int) -> list[Rollout]:
    sampling = SamplingSettings(NEW_TOKENS, samples_per_prompt=samples, stop_at_end_of_text=False)
    return ray.get(engine.generate.remote(prompts, sampling, seeds=list(range(len(prompts) * samples))))


def counts(engines: dict[bool, ray.actor.ActorHandle]) -> list[tuple[int, int]]:
    """With the cache and without."""
    return ray.get([engines[caching].counts.remote() for caching in (True, False)])


def assert_same(ours: list[Rollout], theirs: list[Rollout]) -> None:
    """The same rollouts, but for draws so close to a tie that rounding decides them."""
    same = [np.array_equal(a.response_ids, b.response_ids) for a, b in zip(ours, theirs, strict=True)]
    assert np.mean(same) >= 0.98
    for a, b, equal in zip(ours, theirs, same, strict=True):
        if equal:
            np.testing.assert_allclose(a.behaviour_logprobs, b.behaviour_logprobs, atol=2e-5)


def test_completions_share_the_blocks_of_their_prefix(engines: dict[bool, ray.actor.ActorHandle]) -> None:
    prompts = prompts_of(2 * CPU_BLOCK_TOKENS + 6, 3)
    before = counts(engines)
    assert_same(complete(engines[True], prompts, 4), complete(engines[False], prompts, 4))
    after = counts(engines)
    asked, cached = np.subtract(after, before).T.tolist()
    assert asked == [3 * 4 * len(prompts[0].token_ids)] * 2
    # The first sample of each prompt fills two blocks, the other three find them.
    assert cached == [3 * 3 * 2 * CPU_BLOCK_TOKENS, 0]


def test_seeded_prompts_of_more_than_one_step(engines: dict[bool, ray.actor.ActorHandle]) -> None:
    length = 90
    assert CPU_STEP_TOKENS % length, "a prompt would end with the step, and none be split"
    prompts = prompts_of(length, CPU_STEP_TOKENS // length + 10)
    together = complete(engines[False], prompts, 1)
    assert_same(together, complete(engines[True], prompts, 1))
