"""Soft responses compared with plain ones, and with a row-by-row sampler without a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlgaf_ray.models.generator import build_tiny_gpt2, load_generator, policy_logprobs
from rlgaf_ray.models.scalar import ScalarModel
from rlgaf_ray.models.straight_through import AlignedBatch, align, response_logits, sample_straight_through, soft_logits
from rlgaf_ray.objectives.gumbel import conditional_gumbel_perturbed, gumbel_perturbed, straight_through_embeddings
from rlgaf_ray.types import SequenceBatch

VOCABULARY, TEMPERATURE = 40, 0.8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    build_tiny_gpt2(vocab_size=VOCABULARY, end_of_text_id=0, seed=3).save_pretrained(path)
    return path


@pytest.fixture
def model(folder: Path):
    network: Any = load_generator(folder)
    with torch.no_grad():  # a sharper distribution than that of an untrained model
        network.transformer.wte.weight.mul_(2)
    return network


@pytest.fixture(params=["mean", "last"])
def discriminator(folder: Path, request: pytest.FixtureRequest) -> ScalarModel:
    scalar = ScalarModel.load(folder, pooling=request.param, pad_token_id=0, seed=1)
    with torch.no_grad():
        scalar.network.score.weight.mul_(20)
    return scalar.requires_grad_(False)


def ragged() -> SequenceBatch:
    """Prompts of 2 and 3 tokens, responses of 3 and 1, padded on the right with end of text."""
    tokens = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 13, 0]])
    attention = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
    response = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 0, 1, 0]]).bool()
    return SequenceBatch(tokens, attention, response)


def noise() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in (11, 12)]


def plain(batch: AlignedBatch) -> SequenceBatch:
    """Return the same sequences padded on the right, built by hand."""
    rows = []
    for ids, mask, answer, answered in zip(
        batch.prompt_ids, batch.prompt_mask.bool(), batch.response_ids, batch.response_mask, strict=True
    ):
        rows.append((ids[mask].tolist(), answer[answered].tolist()))
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    pads = [width - len(prompt) - len(answer) for prompt, answer in rows]
    return SequenceBatch(
        torch.tensor([p + a + [0] * pad for (p, a), pad in zip(rows, pads, strict=True)]),
        torch.tensor([[1] * (width - pad) + [0] * pad for pad in pads]),
        torch.tensor([[0] * len(p) + [1] * len(a) + [0] * pad for (p, a), pad in zip(rows, pads, strict=True)]).bool(),
    )


def sample(model, discriminator: ScalarModel, num_tokens: int = 4, **options) -> tuple[AlignedBatch, Tensor]:
    """Return soft responses to the ragged prompts, and the discriminator's logits."""
    options = {"masked_token_ids": [0], "generator": noise(), **options}
    sampled, read = sample_straight_through(
        model,
        align(ragged()),
        discriminator.embedding,
        num_tokens=num_tokens,
        relaxation_temperature=TEMPERATURE,
        **options,
    )
    return sampled, soft_logits(discriminator, sampled, read)


def naive(model, discriminator: ScalarModel, prompt: list[int], seed: int, num_tokens: int) -> tuple[list[int], Tensor]:
    """Sample one row without a cache: run the full prefix at each step, with one-hots as hard + soft - soft."""
    source = torch.Generator().manual_seed(seed)
    own, theirs = model.transformer.wte.weight, discriminator.network.transformer.wte.weight
    inputs, read, tokens = own[prompt], theirs[prompt], []
    for _ in range(num_tokens):
        logits = model(inputs_embeds=inputs[None]).logits[0, -1]
        logits = torch.where(torch.arange(VOCABULARY) == 0, -torch.inf, logits)
        perturbed = logits - torch.empty(VOCABULARY).exponential_(generator=source).log()
        soft = (perturbed / TEMPERATURE).softmax(-1)
        token = int(perturbed.argmax())
        one_hot = torch.nn.functional.one_hot(torch.tensor(token), VOCABULARY) + soft - soft.detach()
        inputs = torch.cat([inputs, (one_hot @ own)[None]])
        read = torch.cat([read, (one_hot @ theirs)[None]])
        tokens.append(token)
    hidden = discriminator.network.transformer(inputs_embeds=read[None]).last_hidden_state[0, len(prompt) :]
    scores = discriminator.network.score(hidden)[:, 0]
    return tokens, scores.mean() if discriminator.pooling == "mean" else scores[-1]


def gradients(model, logits: Tensor) -> dict[str, Tensor]:
    found = torch.autograd.grad(logits.sum(), list(model.parameters()), retain_graph=True)
    return dict(zip((name for name, _ in model.named_parameters()), found, strict=True))


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    # In float32 both differ from float64 by 3e-4 of the largest entry, because sums over rows cancel.
    scale = max(float(value.abs().max()) for value in expected.values())
    assert scale > 1e-3
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=2e-3 * scale, rtol=1e-3, msg=f"{name}: {{}}".format)


def test_alignment_starts_responses_in_one_column() -> None:
    batch = align(ragged())
    assert batch.prompt_ids.tolist() == [[5, 5, 6], [10, 11, 12]]
    assert batch.prompt_mask.tolist() == [[0, 1, 1], [1, 1, 1]]
    assert batch.response_ids[0].tolist() == [7, 8, 9] and int(batch.response_ids[1, 0]) == 13
    assert batch.response_mask.tolist() == [[True, True, True], [True, False, False]]
    with pytest.raises(ValueError, match="needs a prompt"):
        align(SequenceBatch(torch.tensor([[5]]), torch.tensor([[1]]), torch.tensor([[True]])))


def test_aligned_logits_match_plain_logits(model) -> None:
    batch = align(ragged())
    with torch.no_grad():
        logprobs = response_logits(model, batch, temperature=0.7, masked_token_ids=[0]).log_softmax(-1)
        expected = policy_logprobs(model, ragged(), temperature=0.7, masked_token_ids=[0])
    found = logprobs.gather(-1, batch.response_ids[..., None])[..., 0]
    torch.testing.assert_close(found[0], expected[0, 2:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1, 0], expected[1, 3], atol=1e-5, rtol=1e-5)


def test_a_soft_response_has_the_logit_of_its_tokens(model, discriminator: ScalarModel) -> None:
    sampled, logits = sample(model, discriminator)
    assert 0 not in sampled.response_ids.tolist()[0] + sampled.response_ids.tolist()[1]
    with torch.no_grad():
        torch.testing.assert_close(logits, discriminator(plain(sampled)), atol=1e-5, rtol=1e-5)


def test_samples_and_gradients_match_sampling_without_a_cache(model, discriminator: ScalarModel) -> None:
    sampled, logits = sample(model, discriminator)
    rows = [naive(model, discriminator, prompt, seed, 4) for prompt, seed in (([5, 6], 11), ([10, 11, 12], 12))]
    assert sampled.response_ids.tolist() == [tokens for tokens, _ in rows]
    expected = torch.stack([logit for _, logit in rows])
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert_same(gradients(model, logits), gradients(model, expected))


def test_conditional_mode_drops_only_the_gradient_through_later_tokens(model, discriminator: ScalarModel) -> None:
    """With the same noise, detached feeding equals one pass over the sampled tokens; at length 1 nothing is dropped."""
    for num_tokens in (1, 4):
        sampled, whole = sample(model, discriminator, num_tokens)
        _, cut = sample(model, discriminator, num_tokens, feed_gradient=False)
        response = response_logits(model, sampled, temperature=1.0, masked_token_ids=[0])
        sources = noise()
        draws = [gumbel_perturbed(response[:, step], generator=sources) for step in range(num_tokens)]
        tokens, (read,) = straight_through_embeddings(
            torch.stack(draws, 1), [discriminator.embedding], temperature=TEMPERATURE
        )
        assert torch.equal(tokens, sampled.response_ids)
        one_pass = gradients(model, soft_logits(discriminator, sampled, read))
        # Exclude the embedding: only the single pass looks up its rows for sampled tokens.
        own = "transformer.wte.weight"
        full, detached = gradients(model, whole), gradients(model, cut)
        assert_same(*({name: g for name, g in part.items() if name != own} for part in (detached, one_pass)))
        weight = "transformer.h.3.mlp.c_fc.weight"
        assert torch.allclose(full[weight], one_pass[weight], atol=1e-6) == (num_tokens == 1)


def test_conditional_noise_reproduces_the_tokens_logit(model, discriminator: ScalarModel) -> None:
    batch = align(ragged())
    response = response_logits(model, batch, temperature=1.0, masked_token_ids=[0])
    perturbed = conditional_gumbel_perturbed(response, batch.response_ids, generator=noise())
    _, (read,) = straight_through_embeddings(perturbed, [discriminator.embedding], temperature=TEMPERATURE)
    logits = soft_logits(discriminator, batch, read)
    with torch.no_grad():
        torch.testing.assert_close(logits, discriminator(ragged()), atol=1e-5, rtol=1e-5)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients(model, logits).values())


def test_tokens_after_end_of_text_are_ignored(model, discriminator: ScalarModel) -> None:
    whole, _ = sample(model, discriminator, 6)
    end = int(whole.response_ids[0, 2])  # used as end of text: row 0 stops at its first occurrence
    first = whole.response_ids[0].tolist().index(end)
    sampled, logits = sample(model, discriminator, 6, end_of_text_ids=[end])
    assert sampled.response_mask[0].tolist() == [step <= first for step in range(sampled.response_mask.shape[1])]
    with torch.no_grad():
        torch.testing.assert_close(logits, discriminator(plain(sampled)), atol=1e-5, rtol=1e-5)
    _, expected = naive(model, discriminator, [5, 6], 11, first + 1)
    assert_same(gradients(model, logits[:1]), gradients(model, expected))
