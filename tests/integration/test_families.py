"""vLLM on CPU with each family of docs/models.md that it takes: the learner's log-probs, before and after a push."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from rlgaf_ray.actors.cluster import ray_session
from rlgaf_ray.config import Config
from rlgaf_ray.data.collate import collate_sequences
from rlgaf_ray.engines.vllm import VLLMEngine
from rlgaf_ray.models.generator import load_generator, policy_logprobs
from rlgaf_ray.types import Prompt, Rollout, SamplingSettings, WeightUpdate
from rlgaf_ray.weights.state import to_arrays
from tests.families import FAMILIES, Family, save_family

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

PROMPTS = [Prompt(row, np.arange(5, 10 + 3 * row, dtype=np.int32)) for row in range(3)]  # of 5, 8 and 11 tokens
SAMPLING = SamplingSettings(max_new_tokens=24, samples_per_prompt=2)  # beyond the sliding windows of 16


class Process:
    """vLLM engines one after the other in one process, which imports vLLM once."""

    def answers(self, folder: Path, updates: Sequence[WeightUpdate]) -> list[list[Rollout]]:
        """The rollouts of the folder's weights, then those after each update."""
        engine = VLLMEngine(folder, max_model_len=64, kv_cache_mib=64, threads=1)
        try:
            found: list[list[Rollout]] = [engine.generate(PROMPTS, SAMPLING, seeds=range(6))]
            for update in updates:
                engine.update_weights(update)
                found.append(engine.generate(PROMPTS, SAMPLING, seeds=range(6)))
            return found
        finally:
            engine.close()


@pytest.fixture(scope="module")
def process() -> Iterator[ray.actor.ActorHandle]:
    with ray_session(Config()):
        actor: Any = ray.remote(num_cpus=1)(Process)
        yield actor.remote()


@pytest.mark.parametrize("family", [family for family in FAMILIES if not family.vllm], ids=lambda family: family.name)
def test_vllm_and_the_learner_give_the_same_logprobs(
    process: ray.actor.ActorHandle, family: Family, tmp_path: Path
) -> None:
    model = load_generator(save_family(family, tmp_path / "before"))
    pushed = load_generator(save_family(family, tmp_path / "after", seed=1))
    found: list[list[Rollout]] = ray.get(
        process.answers.remote(tmp_path / "before", [to_arrays(pushed.state_dict(), 1)])
    )
    assert [rollouts[0].policy_version for rollouts in found] == [0, 1]
    for network, rollouts in zip((model, pushed), found, strict=True):
        assert max(len(rollout.response_ids) for rollout in rollouts) == SAMPLING.max_new_tokens
        sequences = collate_sequences(rollouts, 0)
        with torch.no_grad():
            logprobs = policy_logprobs(network, sequences)
        for row, rollout in enumerate(rollouts):
            expected = logprobs[row][sequences.response_mask[row]].numpy()
            np.testing.assert_allclose(rollout.behaviour_logprobs, expected, atol=2e-3, rtol=0)
