"""Tables of legal tokens apply in training, generation and engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rlgaf_ray.data.collate import collate_sequences
from rlgaf_ray.engines.transformers import TransformersEngine
from rlgaf_ray.models.folder import save_network
from rlgaf_ray.models.generator import build_tiny_gpt2, load_generator, policy_logprobs, predicted_logprobs
from rlgaf_ray.models.legal import constrain, load_legal
from rlgaf_ray.types import Demonstration, Prompt, SamplingSettings

VOCABULARY = 12


@pytest.fixture
def legal() -> torch.Tensor:
    """Each token may be followed by the next two, cyclically."""
    rows = torch.arange(VOCABULARY)
    table = torch.zeros(VOCABULARY, VOCABULARY, dtype=torch.bool)
    for step in (1, 2):
        table[rows, (rows + step) % VOCABULARY] = True
    return table


def test_only_legal_tokens_have_probability(legal: torch.Tensor) -> None:
    model = build_tiny_gpt2(vocab_size=VOCABULARY, end_of_text_id=0, seed=0)
    free = build_tiny_gpt2(vocab_size=VOCABULARY, end_of_text_id=0, seed=0)
    constrain(model, legal)
    items = [
        Demonstration(np.array([1, 2], np.int32), np.array([3, 5, 6], np.int32)),
        Demonstration(np.array([4], np.int32), np.array([5, 6], np.int32)),
    ]
    sequences = collate_sequences(items, 0)
    probabilities = predicted_logprobs(model, sequences).exp()
    assert torch.allclose(probabilities.sum(-1), torch.ones(()))
    first = 1  # of any response
    assert ((probabilities > 0) == legal[sequences.token_ids[:, first - 1 : -1]]).all()
    # Probabilities are those of the unconstrained network, renormalised over the legal tokens.
    plain = predicted_logprobs(free, sequences).exp() * legal[sequences.token_ids[:, first - 1 : -1]]
    assert torch.allclose(probabilities, plain / plain.sum(-1, keepdim=True), atol=1e-6)
    logprobs = policy_logprobs(model, sequences)
    assert logprobs.isfinite().all()
    (-logprobs.sum()).backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


def test_generate_with_a_cache_samples_legal_tokens(legal: torch.Tensor) -> None:
    model = build_tiny_gpt2(vocab_size=VOCABULARY, end_of_text_id=0, seed=0).eval()
    constrain(model, legal)
    torch.manual_seed(0)
    found = model.generate(torch.tensor([[3], [7]]), do_sample=True, max_new_tokens=20, eos_token_id=None)
    assert legal[found[:, :-1], found[:, 1:]].all() and len(set(found.flatten().tolist())) == VOCABULARY


def test_the_table_is_saved_with_the_model(legal: torch.Tensor, tmp_path: Path) -> None:
    model = build_tiny_gpt2(vocab_size=VOCABULARY, end_of_text_id=0, seed=0)
    save_network(model, tmp_path / "free")
    assert load_legal(tmp_path / "free") is None
    constrain(model, legal)
    save_network(model, tmp_path / "bound")
    found = load_legal(tmp_path / "bound")
    assert found is not None and torch.equal(found, legal)
    again = load_generator(tmp_path / "bound")
    ids = torch.tensor([[3, 4, 6]])
    assert torch.equal(again(input_ids=ids).logits, model.eval()(input_ids=ids).logits)


def test_the_engine_samples_legal_tokens(legal: torch.Tensor, tmp_path: Path) -> None:
    model = build_tiny_gpt2(vocab_size=VOCABULARY, end_of_text_id=0, seed=0)
    constrain(model, legal)
    save_network(model, tmp_path)
    engine = TransformersEngine(tmp_path)
    prompts = [Prompt(0, np.array([3], np.int32)), Prompt(1, np.array([5, 7], np.int32))]
    sampling = SamplingSettings(max_new_tokens=8, samples_per_prompt=20, stop_at_end_of_text=True)
    for rollout in engine.generate(prompts, sampling, seeds=list(range(40))):
        line = [*rollout.prompt_ids[-1:], *rollout.response_ids]
        assert legal[line[:-1], line[1:]].all() and np.isfinite(rollout.behaviour_logprobs).all()


def test_unusable_tables_raise(legal: torch.Tensor) -> None:
    model = build_tiny_gpt2(vocab_size=VOCABULARY, end_of_text_id=0, seed=0)
    with pytest.raises(ValueError, match=r"table of \(11, 11\), and the model has 12 tokens"):
        constrain(model, legal[:11, :11])
    legal[4] = False
    with pytest.raises(ValueError, match="token 4 has no legal next token"):
        constrain(model, legal)
