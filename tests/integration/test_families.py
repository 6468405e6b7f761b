"""vLLM on CPU with each family of docs/models.md that it takes: the learner's log-probs, before and after a push.

Also a push over ``ipc``, with the calls to CUDA replaced: what vLLM's own transfer engine loads, without a GPU.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import ray
import torch
from transformers import PreTrainedModel

from rlgaf_ray.actors.cluster import ray_session
from rlgaf_ray.config import Config
from rlgaf_ray.data.collate import collate_sequences
from rlgaf_ray.engines.vllm import VLLMEngine
from rlgaf_ray.models.generator import load_generator, policy_logprobs
from rlgaf_ray.models.lora import merged_state
from rlgaf_ray.types import Prompt, Rollout, SamplingSettings, WeightUpdate
from rlgaf_ray.weights.manifest import announce
from rlgaf_ray.weights.state import to_arrays, without_tied_copies
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

    def answers_over_ipc(self, folder: Path, state: Mapping[str, torch.Tensor]) -> list[Rollout]:
        """The rollouts after a push of ``state``."""
        with as_on_a_gpu():
            engine = VLLMEngine(folder, max_model_len=64, kv_cache_mib=64, threads=1, transfer="ipc")
            try:
                handles = {name: {CARD: (tensor, *[None] * 6)} for name, tensor in state.items()}
                engine.update_weights(announce(state, 1, handles))
                return engine.generate(PROMPTS, SAMPLING, seeds=range(6))
            finally:
                engine.close()


CARD = "GPU-1"


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """vLLM's engine for ``ipc`` takes tensors in place of handles, and output layers are not repacked, as on CUDA."""
    from vllm.distributed.weight_transfer import ipc_engine
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

    def linear(method: Any, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return torch.nn.functional.linear(x, layer.weight, bias)  # type: ignore[arg-type]

    with (
        patch.object(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=CARD)),
        patch.object(ipc_engine, "rebuild_cuda_tensor", lambda tensor, *rest: tensor),
        patch.object(UnquantizedEmbeddingMethod, "process_weights_after_loading", lambda method, layer: None),
        patch.object(UnquantizedEmbeddingMethod, "apply", linear),
    ):
        yield


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    with ray_session(Config()):
        yield


@pytest.fixture(scope="module")
def process(session: None) -> ray.actor.ActorHandle:
    actor: Any = ray.remote(num_cpus=0.5)(Process)
    return actor.remote()


@pytest.fixture(scope="module")
def another_process(session: None) -> ray.actor.ActorHandle:
    """vLLM's engine patches transformers' class of some models, so that a process can load these only once."""
    actor: Any = ray.remote(num_cpus=0.5)(Process)
    return actor.remote()


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
        assert largest_error(network, rollouts) < 2e-3


def largest_error(network: PreTrainedModel, rollouts: list[Rollout]) -> float:
    sequences = collate_sequences(rollouts, 0)
    with torch.no_grad():
        logprobs = policy_logprobs(network, sequences)
    rows = [row[mask].numpy() for row, mask in zip(logprobs, sequences.response_mask, strict=True)]
    return max(float(np.abs(r.behaviour_logprobs - row).max()) for row, r in zip(rows, rollouts, strict=True))


@pytest.mark.parametrize("family", [family for family in FAMILIES if not family.vllm], ids=lambda family: family.name)
def test_a_push_over_ipc_updates_tied_output_layers_too(
    another_process: ray.actor.ActorHandle, family: Family, tmp_path: Path
) -> None:
    """Tied copies are not sent: vLLM's Gemma 2 rejects them, and the others share the memory of the embedding."""
    before = save_family(family, tmp_path / "before")
    pushed = load_generator(save_family(family, tmp_path / "after", seed=1))
    state = {name: tensor.detach() for name, tensor in without_tied_copies(merged_state(pushed), pushed).items()}
    rollouts: list[Rollout] = ray.get(another_process.answers_over_ipc.remote(before, state))
    assert ("lm_head.weight" in state) != pushed.config.tie_word_embeddings
    assert [rollout.policy_version for rollout in rollouts] == [1] * 6
    assert largest_error(pushed, rollouts) < 2e-3
    assert largest_error(load_generator(before), rollouts) > 0.1
