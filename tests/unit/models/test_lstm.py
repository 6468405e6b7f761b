"""SeqGAN's LSTM as a transformers model: cache, padding, saving, log-probs and the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from rlgaf_ray.engines.transformers import TransformersEngine
from rlgaf_ray.models.generator import load_generator, policy_logprobs
from rlgaf_ray.models.lstm import LstmForCausalLM, build_lstm
from rlgaf_ray.types import Prompt, SamplingSettings, SequenceBatch
from rlgaf_ray.weights.state import to_arrays

END = 0
TOKENS = torch.tensor([[5, 6, 7, 8, 9, 3], [10, 11, 12, 13, 14, 2]])


def lstm(seed: int = 1, deviation: float = 1.0) -> LstmForCausalLM:
    return build_lstm(
        vocab_size=50, end_of_text_id=END, seed=seed, embedding_size=8, hidden_size=12, initializer_range=deviation
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lstm")
    lstm().save_pretrained(path)
    return path


def test_logits_match_the_equations() -> None:
    """One token by hand: gates, cell, hidden, output, from a zero state."""
    model: Any = lstm()
    with torch.no_grad():
        gates = model.lstm.weight_ih_l0 @ model.embedding.weight[7] + model.lstm.bias_ih_l0
        enter, _, new, out = gates.chunk(4)
        hidden = out.sigmoid() * (enter.sigmoid() * new.tanh()).tanh()
        expected = model.lm_head.weight @ hidden + model.lm_head.bias
        torch.testing.assert_close(model(torch.tensor([[7]])).logits[0, 0], expected, atol=1e-5, rtol=0)


def test_initialisation() -> None:
    model = build_lstm(vocab_size=5000, end_of_text_id=END, seed=3, initializer_range=1.0)
    deviations = {name: float(weight.std()) for name, weight in model.state_dict().items()}
    assert deviations.pop("lstm.bias_hh_l0") == 0.0
    for name, deviation in deviations.items():
        assert deviation == pytest.approx(1.0, abs=0.15), name
    first, again, other = (lstm(seed).lm_head.weight for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_stepwise_logits_equal_one_pass() -> None:
    model, cache = lstm(), None
    with torch.no_grad():
        whole = model(TOKENS).logits
        first = model(TOKENS[:, :2], use_cache=True)
        cache, pieces = first.past_key_values, [first.logits]
        for step in range(2, TOKENS.shape[1]):
            output = model(TOKENS[:, step : step + 1], past_key_values=cache, use_cache=True, logits_to_keep=1)
            pieces.append(output.logits)
    assert isinstance(cache, DynamicCache)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_affects_neither_logits_nor_state(side: str) -> None:
    model = lstm()
    mask = torch.ones_like(TOKENS)
    mask[1, slice(0, 3) if side == "left" else slice(3, None)] = 0
    alone = TOKENS[1:, 3:] if side == "left" else TOKENS[1:, :3]
    with torch.no_grad():
        padded = model(TOKENS, attention_mask=mask, use_cache=True)
        single = model(alone, use_cache=True)
        torch.testing.assert_close(padded.logits[0], model(TOKENS[:1]).logits[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(padded.logits[1, mask[1].bool()], single.logits[0], atol=1e-6, rtol=0)
        # The cached states give the same next logits.
        following = [
            model(torch.full((rows, 1), 4), past_key_values=output.past_key_values, use_cache=True).logits[-1]
            for rows, output in ((2, padded), (1, single))
        ]
    torch.testing.assert_close(*following, atol=1e-6, rtol=0)


def test_an_empty_prompt_raises() -> None:
    with pytest.raises(ValueError, match="give every prompt at least one"):
        lstm()(TOKENS, attention_mask=torch.tensor([[1] * 6, [0] * 6]))


def test_save_and_load(folder: Path) -> None:
    model, loaded = lstm(), load_generator(folder)
    assert isinstance(loaded, LstmForCausalLM)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    assert loaded.config.hidden_size == 12 and loaded.config.eos_token_id == END


def test_engine_and_learner_logprobs_agree(folder: Path) -> None:
    """Prompts of different lengths: the engine pads on the left, the learner on the right."""
    engine = TransformersEngine(folder)
    prompts = [Prompt(row, np.arange(1, 2 + row, dtype=np.int32)) for row in range(4)]
    sampling = SamplingSettings(max_new_tokens=12, samples_per_prompt=2, temperature=0.8, stop_at_end_of_text=False)

    def largest_gap(model: LstmForCausalLM) -> float:
        gap = 0.0
        for rollout in engine.generate(prompts, sampling, seeds=range(8)):
            num_prompt, ids = len(rollout.prompt_ids), np.concatenate([rollout.prompt_ids, rollout.response_ids])
            tokens = torch.from_numpy(ids).long()[None]
            padded = torch.nn.functional.pad(tokens, (0, 3))
            attention = torch.nn.functional.pad(torch.ones_like(tokens), (0, 3))
            response = attention.bool()
            response[:, :num_prompt] = False
            batch = SequenceBatch(padded, attention, response)
            with torch.no_grad():
                found = policy_logprobs(model, batch, temperature=0.8, masked_token_ids=[END])
            gap = max(gap, float(abs(found[response].numpy() - rollout.behaviour_logprobs).max()))
        return gap

    model = lstm()
    assert largest_gap(model) < 1e-5
    moved = lstm(seed=2)
    engine.update_weights(to_arrays(moved.state_dict(), policy_version=1))
    assert largest_gap(moved) < 1e-5 < largest_gap(model)


def test_the_recurrence_is_exact_under_autocast() -> None:
    model = lstm(deviation=0.3)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = model(TOKENS).logits
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), model(TOKENS).logits.detach(), atol=0.03, rtol=0.02)
