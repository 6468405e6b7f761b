"""The transformers engine against a teacher-forced forward pass of the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from rlgaf_ray.engines.sampling import sampling_logprobs
from rlgaf_ray.engines.transformers import TransformersEngine
from rlgaf_ray.errors import UserError
from rlgaf_ray.models.generator import load_generator
from rlgaf_ray.types import Prompt, Rollout, SamplingSettings
from rlgaf_ray.weights.state import to_arrays

END = 0
PROMPTS = [Prompt(10 + row, np.arange(1, 2 + row, dtype=np.int32)) for row in range(4)]  # 1 to 4 tokens


@pytest.fixture(scope="module")
def engine(gpt2_folder: Path) -> TransformersEngine:
    return TransformersEngine(gpt2_folder)


def recomputed_logprobs(model, rollout: Rollout, sampling: SamplingSettings) -> np.ndarray:
    """Log-probs of the response from one unpadded forward pass without a KV cache."""
    token_ids = torch.from_numpy(np.concatenate([rollout.prompt_ids, rollout.response_ids])).long()
    with torch.no_grad():
        logits = model(token_ids[None], use_cache=False).logits[0, len(rollout.prompt_ids) - 1 : -1]
    masked_ids = [] if sampling.stop_at_end_of_text else [END]
    logprobs = sampling_logprobs(logits, sampling, masked_ids=masked_ids)
    return logprobs[range(len(logprobs)), rollout.response_ids].numpy()


@pytest.mark.parametrize(
    "changes",
    [{}, {"stop_at_end_of_text": False}, {"temperature": 0.7, "top_k": 12, "top_p": 0.8, "stop_at_end_of_text": False}],
)
def test_logprobs_match_a_teacher_forced_pass(engine: TransformersEngine, gpt2_folder: Path, changes: dict) -> None:
    sampling = SamplingSettings(max_new_tokens=12, samples_per_prompt=3, **changes)
    rollouts = engine.generate(PROMPTS, sampling, seeds=range(12))
    model = load_generator(gpt2_folder)
    assert [rollout.prompt_id for rollout in rollouts] == [10, 10, 10, 11, 11, 11, 12, 12, 12, 13, 13, 13]
    for rollout in rollouts:
        assert rollout.behaviour_logprobs.dtype == np.float32
        np.testing.assert_allclose(
            rollout.behaviour_logprobs, recomputed_logprobs(model, rollout, sampling), atol=1e-5, rtol=0
        )


def test_a_rollout_does_not_depend_on_the_rest_of_the_batch(engine: TransformersEngine) -> None:
    sampling = SamplingSettings(max_new_tokens=10, samples_per_prompt=2, stop_at_end_of_text=False)
    alone = SamplingSettings(max_new_tokens=10, stop_at_end_of_text=False)
    together = engine.generate(PROMPTS, sampling, seeds=range(50, 58))
    for index, rollout in enumerate(together):
        (single,) = engine.generate([PROMPTS[index // 2]], alone, seeds=[50 + index])
        assert single.response_ids.tolist() == rollout.response_ids.tolist()
        np.testing.assert_allclose(single.behaviour_logprobs, rollout.behaviour_logprobs, atol=1e-5)


def test_equal_prefixes_share_a_forward_pass_and_finished_rows_leave_it(engine: TransformersEngine) -> None:
    """20 responses per prompt start in one row per prompt, and end in as many rows as responses are still sampled."""
    sizes: list[int] = []
    hook = engine._model.register_forward_hook(
        lambda model, arguments, options, output: sizes.append(len(options["input_ids"])), with_kwargs=True
    )
    rollouts = engine.generate(PROMPTS, SamplingSettings(max_new_tokens=20, samples_per_prompt=20), seeds=range(80))
    hook.remove()
    for step, size in enumerate(sizes):
        sampled = [rollout for rollout in rollouts if len(rollout.response_ids) > step]
        assert size == len({(rollout.prompt_id, rollout.response_ids[:step].tobytes()) for rollout in sampled})
    assert sizes[0] == len(PROMPTS) < sizes[1] < 80 and sizes[-1] < max(sizes)


def test_a_cache_that_does_not_reorder_its_rows_is_refused(gpt2_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def keep_the_old_rows(cache: Any, order: torch.Tensor) -> None:
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[[0, 1, 0]], layer.values[[0, 1, 0]]

    monkeypatch.setattr(DynamicCache, "reorder_cache", keep_the_old_rows)
    with pytest.raises(UserError, match="reordered rows of it"):
        TransformersEngine(gpt2_folder)


def test_different_seeds_give_different_rollouts(engine: TransformersEngine) -> None:
    sampling = SamplingSettings(max_new_tokens=10, stop_at_end_of_text=False)
    first = engine.generate(PROMPTS, sampling, seeds=range(4))
    assert [r.response_ids.tolist() for r in first] == [
        r.response_ids.tolist() for r in engine.generate(PROMPTS, sampling, seeds=range(4))
    ]
    other = engine.generate(PROMPTS, sampling, seeds=range(4, 8))
    assert all(a.response_ids.tolist() != b.response_ids.tolist() for a, b in zip(first, other, strict=True))


def test_end_of_text_stops_a_row_and_is_part_of_the_response(engine: TransformersEngine) -> None:
    sampling = SamplingSettings(max_new_tokens=20, samples_per_prompt=16)
    rollouts = engine.generate(PROMPTS, sampling, seeds=range(64))
    stopped = [rollout for rollout in rollouts if rollout.finish_reason == "stop"]
    assert 0 < len(stopped) < len(rollouts)
    for rollout in rollouts:
        assert len(rollout.behaviour_logprobs) == len(rollout.response_ids)
        assert END not in rollout.response_ids[:-1]
        assert (rollout.response_ids[-1] == END) == (rollout.finish_reason == "stop")
        assert rollout.finish_reason == "stop" or len(rollout.response_ids) == 20


def test_a_masked_end_of_text_gives_full_length(engine: TransformersEngine) -> None:
    sampling = SamplingSettings(max_new_tokens=20, samples_per_prompt=16, stop_at_end_of_text=False)
    for rollout in engine.generate(PROMPTS, sampling, seeds=range(64)):
        assert rollout.finish_reason == "length"
        assert len(rollout.response_ids) == 20
        assert END not in rollout.response_ids


def test_new_weights_change_samples_and_version(gpt2_folder: Path) -> None:
    engine, model = TransformersEngine(gpt2_folder), load_generator(gpt2_folder)
    sampling = SamplingSettings(max_new_tokens=8, stop_at_end_of_text=False)
    gpt2: Any = model
    with torch.no_grad():
        weight = gpt2.transformer.h[0].mlp.c_proj.weight
        weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    before = engine.generate(PROMPTS, sampling, seeds=range(4))
    engine.update_weights(to_arrays(model.state_dict(), policy_version=3))
    after = engine.generate(PROMPTS, sampling, seeds=range(4))
    assert {rollout.policy_version for rollout in before} == {0}
    assert {rollout.policy_version for rollout in after} == {3}
    for old, new in zip(before, after, strict=True):
        np.testing.assert_allclose(new.behaviour_logprobs, recomputed_logprobs(model, new, sampling), atol=1e-5)
        assert abs(old.behaviour_logprobs - recomputed_logprobs(model, old, sampling)).max() > 1e-3


def test_the_last_chunk_of_an_update_sets_the_version(gpt2_folder: Path) -> None:
    engine, whole = TransformersEngine(gpt2_folder), TransformersEngine(gpt2_folder)
    state = {name: tensor * 1.5 for name, tensor in load_generator(gpt2_folder).state_dict().items()}
    names = list(state)
    sampling = SamplingSettings(max_new_tokens=8, stop_at_end_of_text=False)
    for part, some in enumerate((names[:3], names[3:])):
        assert engine.policy_version == 0
        engine.update_weights(to_arrays({name: state[name] for name in some}, 3, part=part, num_parts=2))
    whole.update_weights(to_arrays(state, 3))
    first, second = (each.generate(PROMPTS, sampling, seeds=range(4)) for each in (engine, whole))
    for one, other in zip(first, second, strict=True):
        assert one.policy_version == 3
        np.testing.assert_array_equal(one.behaviour_logprobs, other.behaviour_logprobs)


def test_an_incomplete_state_dict_raises_and_changes_nothing(gpt2_folder: Path) -> None:
    engine, model = TransformersEngine(gpt2_folder), load_generator(gpt2_folder)
    with pytest.raises(ValueError, match=r"version 1 lack 'lm_head\.weight'"):
        engine.update_weights(to_arrays(dict(model.named_parameters()), policy_version=1))
    assert engine.policy_version == 0


def test_a_request_that_is_too_long_raises(engine: TransformersEngine) -> None:
    with pytest.raises(UserError, match=r"gpt2.* takes at most 32 tokens, .* have 33: lower task\.prompt_tokens"):
        engine.generate(PROMPTS, SamplingSettings(max_new_tokens=29), seeds=range(4))


def test_no_prompts_give_no_rollouts(engine: TransformersEngine) -> None:
    assert engine.generate([], SamplingSettings(max_new_tokens=5), seeds=[]) == []
