"""vLLM in a process of its own against vLLM in the caller's and the learner; weights in flight; adapters."""

from __future__ import annotations

import importlib.util
import multiprocessing
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from rlgaf_ray.config.lora import LoraSettings
from rlgaf_ray.data.collate import collate_sequences
from rlgaf_ray.engines.vllm import VLLMEngine
from rlgaf_ray.engines.vllm_async import AsyncVLLMEngine
from rlgaf_ray.models.generator import load_generator, policy_logprobs
from rlgaf_ray.models.lora import add_adapters, merged_state
from rlgaf_ray.types import Prompt, Rollout, SamplingSettings, WeightUpdate
from rlgaf_ray.weights.state import split_state, to_arrays
from tests.patience import HANGS_AFTER

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.slow,  # two engines start, one of them in processes of its own
]

END, VOCABULARY, POSITIONS = 0, 300, 192
SAMPLING = SamplingSettings(max_new_tokens=100, samples_per_prompt=2, stop_at_end_of_text=False)
SEEDS = range(8)


def prompts() -> list[Prompt]:
    numbers = np.random.default_rng(0)
    return [Prompt(i, numbers.integers(1, VOCABULARY, n).astype(np.int32)) for i, n in enumerate((3, 40, 9, 50))]


def move(model: torch.nn.Module, seed: int) -> None:
    numbers = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=numbers) * 0.05)


def errors(model: PreTrainedModel, rollouts: list[Rollout]) -> list[np.ndarray]:
    """Of each rollout's tokens, the distance of the engine's log-prob to this model's."""
    batch = collate_sequences(rollouts, pad_token_id=END)
    with torch.no_grad():
        logprobs = policy_logprobs(model, batch, masked_token_ids=[END])
    return [
        np.abs(row[mask].numpy() - rollout.behaviour_logprobs)
        for row, mask, rollout in zip(logprobs, batch.response_mask, rollouts, strict=True)
    ]


def rollouts_in_this_process(folder: Path, update: WeightUpdate) -> list[list[Rollout]]:
    engine = VLLMEngine(folder, max_model_len=POSITIONS, kv_cache_mib=64, threads=1)
    before = engine.generate(prompts(), SAMPLING, seeds=SEEDS)
    engine.update_weights(update)
    return [before, engine.generate(prompts(), SAMPLING, seeds=SEEDS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=POSITIONS, n_embd=64, n_layer=2, n_head=2, bos_token_id=END, eos_token_id=END
    )
    path = tmp_path_factory.mktemp("model")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[AsyncVLLMEngine]:
    engine = AsyncVLLMEngine(folder, max_model_len=POSITIONS, kv_cache_mib=64, threads=1, in_flight=True)
    yield engine
    engine.close()


def test_another_process_makes_the_same_rollouts_before_and_after_a_push(folder: Path, engine: AsyncVLLMEngine) -> None:
    model = load_generator(folder)
    move(model, seed=1)
    update = to_arrays(model.state_dict(), 1)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        before, after = pool.submit(rollouts_in_this_process, folder, update).result()
    for expected in (before, after):
        rollouts = engine.generate(prompts(), SAMPLING, seeds=SEEDS)
        for one, other in zip(rollouts, expected, strict=True):
            assert one.response_ids.tolist() == other.response_ids.tolist()
            np.testing.assert_allclose(one.behaviour_logprobs, other.behaviour_logprobs, atol=1e-5)
            assert (one.policy_version, one.finish_reason) == (other.policy_version, other.finish_reason)
        if expected is before:
            engine.update_weights(update)
    assert max(error.max() for error in errors(model, rollouts)) < 1e-4


def test_weights_in_flight_serve_the_rest_of_the_rollouts(
    folder: Path, engine: AsyncVLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = load_generator(folder), load_generator(folder)
    move(new, seed=2)
    engine.update_weights(to_arrays(old.state_dict(), 10))
    rollouts: list[Rollout] = []
    running = threading.Thread(target=lambda: rollouts.extend(engine.generate(prompts(), SAMPLING, seeds=SEEDS)))
    all_began = threading.Event()
    processor = engine._async_llm.output_processor
    begun: set[str] = set()
    process = processor.process_outputs

    def watch(outputs, *args, **options):
        begun.update(output.request_id for output in outputs)
        if len(begun) == len(SEEDS):
            all_began.set()
        return process(outputs, *args, **options)

    monkeypatch.setattr(processor, "process_outputs", watch)
    running.start()
    assert all_began.wait(HANGS_AFTER)
    engine.update_weights(to_arrays(new.state_dict(), 11))
    running.join()
    assert len(rollouts) == len(SEEDS)
    for of_old, of_new in zip(errors(old, rollouts), errors(new, rollouts), strict=True):
        # Every token is of one of the two, and the second one's come after all of the first one's.
        first_new = int((of_old < 1e-4).argmin())
        assert 0 < first_new < SAMPLING.max_new_tokens
        assert (of_old[:first_new] < 1e-4).all()
        assert (of_new[first_new:] < 1e-4).all()
    assert {rollout.policy_version for rollout in rollouts} == {10}  # the oldest that had a part
    later = engine.generate(prompts(), SAMPLING, seeds=SEEDS)
    assert {rollout.policy_version for rollout in later} == {11}
    assert max(error.max() for error in errors(new, later)) < 1e-4


def test_merged_adapters_give_the_learners_logprobs(folder: Path, engine: AsyncVLLMEngine) -> None:
    model = load_generator(folder)
    add_adapters(model, LoraSettings(rank=4, alpha=32.0), seed=0)
    move(model, seed=3)
    state, parts = merged_state(model), split_state(model, max_bytes=100_000)
    assert len(parts) > 2
    for part, names in enumerate(parts):  # each as a file of its own
        update = to_arrays({name: state[name] for name in names}, 20, part=part, num_parts=len(parts))
        engine.update_weights(update)
    rollouts = engine.generate(prompts(), SAMPLING, seeds=SEEDS)
    assert max(error.max() for error in errors(model, rollouts)) < 1e-4
    assert max(error.max() for error in errors(load_generator(folder), rollouts)) > 1e-2


def test_an_incomplete_push_is_refused_and_generation_goes_on(folder: Path, engine: AsyncVLLMEngine) -> None:
    model = load_generator(folder)
    engine.update_weights(to_arrays(model.state_dict(), 30))
    state = dict(model.state_dict())
    del state["lm_head.weight"]
    with pytest.raises(ValueError, match=r"lack 'lm_head\.weight'"):
        engine.update_weights(to_arrays(state, 31))
    rollouts = engine.generate(prompts(), SAMPLING, seeds=SEEDS)
    assert {rollout.policy_version for rollout in rollouts} == {30}
    assert max(error.max() for error in errors(model, rollouts)) < 1e-4
