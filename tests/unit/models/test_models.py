from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rlgaf_ray.errors import UserError
from rlgaf_ray.models.folder import check_model_source
from rlgaf_ray.models.generator import (
    build_tiny_gpt2,
    load_generator,
    policy_logprobs,
    predicted_logprobs,
    sampled_logprobs,
)
from rlgaf_ray.models.scalar import Pooling, ScalarModel
from rlgaf_ray.types import SequenceBatch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    build_tiny_gpt2(vocab_size=300, end_of_text_id=0, seed=3).save_pretrained(path)
    return path


def ragged() -> SequenceBatch:
    """Prompts of 2 and 3 tokens, responses of 3 and 1, padded on the right with end of text."""
    tokens = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 13, 0]])
    attention = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
    response = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 0, 1, 0]]).bool()
    return SequenceBatch(tokens, attention, response)


def test_logprobs_of_ragged_responses_match_log_softmax(folder: Path) -> None:
    model, batch = load_generator(folder), ragged()
    with torch.no_grad():
        found = policy_logprobs(model, batch, temperature=0.7)
        first = torch.log_softmax(model(batch.token_ids[:1]).logits / 0.7, -1)
        second = torch.log_softmax(model(batch.token_ids[1:, :4]).logits / 0.7, -1)
    expected = torch.zeros(2, 5)
    for position in (2, 3, 4):
        expected[0, position] = first[0, position - 1, batch.token_ids[0, position]]
    expected[1, 3] = second[0, 2, 13]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_masked_tokens_have_no_probability_and_finite_gradients(folder: Path) -> None:
    model, batch = load_generator(folder), ragged()
    found = policy_logprobs(model, batch, masked_token_ids=[0, 17])
    logits = model(batch.token_ids[:1]).logits[0, 1].detach().clone()
    logits[[0, 17]] = float("-inf")
    torch.testing.assert_close(found[0, 2].detach(), torch.log_softmax(logits, -1)[7], atol=1e-6, rtol=0)
    found.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


def test_a_response_needs_a_prompt(folder: Path) -> None:
    tokens = torch.tensor([[5, 6]])
    batch = SequenceBatch(tokens, torch.ones_like(tokens), torch.ones_like(tokens).bool())
    with pytest.raises(ValueError, match="cannot start at position 0"):
        policy_logprobs(load_generator(folder), batch)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_pooling_reads_only_the_response(folder: Path, pooling: Pooling) -> None:
    model, batch = ScalarModel.load(folder, pooling=pooling, pad_token_id=0, seed=1), ragged()
    with torch.no_grad():
        scores, logits = model.token_scores(batch), model(batch)
    expected = [scores[0, 2:].mean(), scores[1, 3]] if pooling == "mean" else [scores[0, 4], scores[1, 3]]
    torch.testing.assert_close(logits, torch.stack(expected))


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_token_logits_sum_to_the_logit(folder: Path, pooling: Pooling) -> None:
    model, batch = ScalarModel.load(folder, pooling=pooling, pad_token_id=0, seed=1), ragged()
    with torch.no_grad():
        parts, logits = model.token_logits(batch), model(batch)
    torch.testing.assert_close(parts.sum(1), logits)
    assert not parts[~batch.response_mask].any()
    if pooling == "mean":  # causal: a later token affects earlier shares only through the length
        shorter = SequenceBatch(
            *(each[:1, :4] for each in (batch.token_ids, batch.attention_mask, batch.response_mask))
        )
        with torch.no_grad():
            again = model.token_logits(shorter)
        ratio = batch.response_mask[0].sum() / shorter.response_mask.sum()
        torch.testing.assert_close(again[0], parts[0, :4] * ratio)


def test_full_distributions_match_token_logprobs(folder: Path) -> None:
    model, batch = load_generator(folder), ragged()
    whole = predicted_logprobs(model, batch, temperature=0.7, masked_token_ids=[0])
    torch.testing.assert_close(whole.exp().sum(-1), torch.ones(whole.shape[:-1]))
    torch.testing.assert_close(
        sampled_logprobs(whole, batch, masked_token_ids=[0]),
        policy_logprobs(model, batch, temperature=0.7, masked_token_ids=[0]),
    )


def test_last_pooling_exports_as_a_sequence_classifier(folder: Path, tmp_path: Path) -> None:
    model, batch = ScalarModel.load(folder, pooling="last", pad_token_id=0, seed=1), ragged()
    model.export(tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        theirs = plain(batch.token_ids, attention_mask=batch.attention_mask).logits[:, 0]
        torch.testing.assert_close(theirs, model(batch), atol=1e-6, rtol=0)


def test_a_plain_sequence_classifier_skips_a_final_end_of_text_that_is_padding(folder: Path, tmp_path: Path) -> None:
    """As docs/outputs.md states; ``last`` reads the end of text itself."""
    model, batch = ScalarModel.load(folder, pooling="last", pad_token_id=0, seed=1), ragged()
    batch.token_ids[0, 4] = 0
    model.export(tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        scores = model.token_scores(batch)
        theirs = plain(batch.token_ids, attention_mask=batch.attention_mask).logits[:, 0]
        torch.testing.assert_close(theirs, torch.stack([scores[0, 3], scores[1, 3]]), atol=1e-6, rtol=0)
        torch.testing.assert_close(model(batch), torch.stack([scores[0, 4], scores[1, 3]]))


def test_the_head_is_initialised_from_the_seed(folder: Path) -> None:
    heads = [ScalarModel.load(folder, pooling="mean", pad_token_id=0, seed=s).network.score.weight for s in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_folder_without_a_model_raises(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.json"):
        check_model_source(str(tmp_path))
    with pytest.raises(UserError, match="does not exist"):
        check_model_source("./nowhere")
    check_model_source("tiny-gpt2")
    check_model_source("org/model-on-the-hub")
