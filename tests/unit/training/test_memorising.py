"""Regularisation against memorised demonstrations, and the shuffled-labels control."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import softplus

from rlgaf_ray.config import load_config
from rlgaf_ray.evaluation.discrimination import auc
from rlgaf_ray.objectives.discriminator import discriminator_loss
from rlgaf_ray.training.batching import Batching
from rlgaf_ray.training.discriminator import with_scores
from rlgaf_ray.training.labels import shuffled
from rlgaf_ray.training.neural_discriminator import NeuralDiscriminator
from rlgaf_ray.types import Demonstration
from tests.unit.training.test_stabilisers import (
    CONTRAST,
    FAKE,
    REAL,
    demonstrations,
    equal,
    logits,
    responses,
    state_of,
)


@pytest.fixture
def build(folder: Path):
    def make(*overrides: str) -> NeuralDiscriminator:
        settings = ["learner.precision=float32", "discriminator.frozen_layers=0"]
        settings += [f"discriminator.{each}" for each in overrides]
        return NeuralDiscriminator(folder, load_config(None, settings), pad_token_id=0)

    return make


def trained(discriminator: NeuralDiscriminator) -> dict[str, torch.Tensor]:
    discriminator.update(REAL, FAKE, CONTRAST)
    return state_of(discriminator)


def test_dropout_is_only_active_in_updates_and_seeded_per_update(build) -> None:
    first, second, plain = build("dropout=0.3"), build("dropout=0.3"), build()
    assert logits(first) == logits(plain)
    again = trained(second)
    assert equal(trained(first), again) and not equal(again, trained(plain))
    assert logits(first) == logits(first) and not first.model.network.training
    other = build("dropout=0.3")
    other.version = 1  # the second update has another dropout mask
    assert not equal(trained(other), again)


def test_dropout_is_in_embeddings_attention_and_residuals(build, monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-2 with four blocks: after the embeddings, and on attention weights, attention and MLP of each block."""
    rates: list[float] = []
    drop = torch.nn.functional.dropout

    def watched(values: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        rates.append(p if training else 0.0)
        return drop(values, p, training, inplace)

    monkeypatch.setattr(torch.nn.functional, "dropout", watched)
    discriminator = build("dropout=0.25")
    discriminator.update(REAL, FAKE)
    assert rates == [0.25] * 13  # 16 sequences, one pass
    rates.clear()
    discriminator.score(FAKE)
    assert rates == [0.0] * 13


def test_recomputed_blocks_have_the_same_dropout(folder: Path) -> None:
    states = []
    for recomputed in ("false", "true"):
        settings = [f"learner.activation_checkpointing={recomputed}", "discriminator.dropout=0.3"]
        config = load_config(None, ["learner.precision=float32", *settings])
        states.append(trained(NeuralDiscriminator(folder, config, pad_token_id=0)))
    assert equal(*states)


@pytest.mark.parametrize("negative", [True, False])
def test_the_full_batch_decides_whether_the_positive_unlabelled_risk_counts(build, negative: bool) -> None:
    """Micro-batches of one sequence, each of positive risk, give the gradient of the full batch."""
    gradients = []
    for size in (64, 1):
        discriminator = build("loss=positive_unlabelled", "positive_share=0", "learning_rate=1e-3")
        for _ in range(12 if negative else 2):  # after 12 updates the demonstrations are memorised
            discriminator.update(REAL, FAKE)
        discriminator.settings = discriminator.settings.model_copy(update={"positive_share": 0.5})
        discriminator.batching = Batching(size)
        discriminator.model.zero_grad()
        metrics = discriminator._accumulate_gradients(REAL, FAKE, ())
        assert (metrics["negative_risk"] < 0) == negative
        gradients.append([weight.grad.clone() for weight in discriminator.model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    discriminator.model.zero_grad()
    (softplus(-discriminator.logits(REAL)).mean() / 2).backward()
    of_real = [weight.grad for weight in discriminator.model.parameters()]
    alike = [torch.allclose(*each, rtol=1e-3, atol=1e-5) for each in zip(gradients[0], of_real, strict=True)]
    assert all(alike) == negative


def test_the_risk_is_decided_with_the_dropout_of_the_update(build, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []

    def watched(real: torch.Tensor, fake: torch.Tensor, **options):
        seen.append(torch.cat([real, fake]).detach())
        return discriminator_loss(real, fake, **options)

    monkeypatch.setattr("rlgaf_ray.training.neural_discriminator.discriminator_loss", watched)
    discriminator = build("loss=positive_unlabelled", "dropout=0.3")
    discriminator.batching = Batching(1)
    discriminator.update(REAL, FAKE)
    assert len(seen) == 1 + 6 + 1  # all rows; three in each pass; the metrics
    assert torch.equal(seen[0], seen[-1]) and len(set(seen[0].tolist())) == 16


def numbered(*numbers: int) -> list[Demonstration]:
    return [Demonstration(np.array([1], np.int32), np.array([number], np.int32)) for number in numbers]


def numbers(kinds) -> list[list[int]]:
    return [[int(item.response_ids[0]) for item in kind] for kind in kinds]


def test_shuffled_labels_are_independent_of_the_true_labels() -> None:
    """Each of 12 texts is labelled real in a third of the draws, generated in half, contrast in a sixth."""
    kinds = numbered(*range(4)), numbered(*range(4, 10)), numbered(10, 11)
    counts = np.zeros((3, 12))
    for seed in range(3000):
        dealt = numbers(shuffled(*kinds, paired=False, generator=np.random.default_rng(seed)))
        assert [len(kind) for kind in dealt] == [4, 6, 2] and sorted(np.concatenate(dealt)) == list(range(12))
        for kind, found in enumerate(dealt):
            counts[kind, found] += 1
    np.testing.assert_allclose(counts / 3000, np.array([[1 / 3], [1 / 2], [1 / 6]]).repeat(12, 1), atol=0.04)


def test_shuffled_labels_of_a_paired_loss_stay_within_a_prompt() -> None:
    """The tens digit is the prompt: one real row, one rollout and two contrast rows each."""
    kinds = numbered(0, 10, 20), numbered(1, 11, 21), numbered(2, 12, 22, 3, 13, 23)
    firsts = []
    for seed in range(400):
        real, fake, contrast = numbers(shuffled(*kinds, paired=True, generator=np.random.default_rng(seed)))
        for row, quartet in enumerate(zip(real, fake, contrast[:3], contrast[3:], strict=True)):
            assert sorted(quartet) == [10 * row + kind for kind in range(4)]
        firsts.append(real)
    assert len({tuple(row) for row in firsts}) == 64  # prompts are shuffled independently
    np.testing.assert_allclose(np.mean(np.array(firsts) % 10 == 0, axis=0), [0.25] * 3, atol=0.1)
    without = numbers(shuffled(*kinds[:2], [], paired=True, generator=np.random.default_rng(0)))
    assert [sorted(pair) for pair in zip(*without[:2], strict=True)] == [[0, 1], [10, 11], [20, 21]]
    assert without[2] == []


@pytest.mark.parametrize("loss", ["binary_cross_entropy", "bradley_terry"])
def test_labels_are_reshuffled_in_each_update(folder: Path, loss: str) -> None:
    def teach(*overrides: str, version: int = 0) -> dict[str, torch.Tensor]:
        shared = ["learner.precision=float32", "warmup.discriminator.steps=0", f"discriminator.loss={loss}"]
        sequence = "generator.reinforce.credit=sequence"
        discriminator = NeuralDiscriminator(folder, load_config(None, [*shared, sequence, *overrides]), pad_token_id=0)
        discriminator.version = version
        return trained(discriminator)

    labels = "discriminator.labels=shuffled"
    first = teach(labels)
    assert equal(first, teach(labels))
    for other in (teach(), teach(labels, version=1)):  # another update number
        assert not equal(first, other)


def test_nothing_is_learned_from_shuffled_labels(folder: Path) -> None:
    """With correct labels, tokens below and above 32 separate real from generated text immediately."""
    areas = {}
    for labels in ("correct", "shuffled"):
        shared = ["learner.precision=float32", "warmup.discriminator.steps=0", "discriminator.learning_rate=1e-3"]
        config = load_config(None, [*shared, "discriminator.frozen_layers=2", f"discriminator.labels={labels}"])
        discriminator = NeuralDiscriminator(folder, config, pad_token_id=0)
        real = [Demonstration(item.prompt_ids, item.response_ids) for item in responses(32, seed=5, high=32)]
        fake = responses(32, seed=6, low=32)
        for _ in range(12):
            discriminator.update(real, fake)
        scored, found = with_scores(fake, real, *discriminator.token_scores([*fake, *real]))
        areas[labels] = auc(np.array(found), np.array([item.score for item in scored]))[0]
    assert areas["correct"] > 0.99 and 0.2 < areas["shuffled"] < 0.8


def test_replayed_pairs_stay_pairs_in_the_loss(build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A demonstration and its rollout share the first token, also after the exchange and in the loss."""
    settings = ["loss=bradley_terry", "replay_share=0.5"]
    discriminator = build(*settings)
    seen: list[tuple[list[int], list[int], int]] = []
    learn = discriminator._accumulate_gradients

    def watched(real, fake, contrast):
        seen.append(([r.response_ids[0] for r in real], [f.response_ids[0] for f in fake], len(contrast)))
        return learn(real, fake, contrast)

    monkeypatch.setattr(discriminator, "_accumulate_gradients", watched)
    for version in range(3):
        fake = responses(8, seed=10 + version, version=version)
        real = [Demonstration(item.prompt_ids, np.append(item.response_ids[:1], 60).astype(np.int32)) for item in fake]
        metrics = discriminator.update(real, fake, CONTRAST)
        assert metrics["discriminator/replayed_share"] == (0.5 if version else 0.0)
    assert all(first == second and num_contrast == 8 for first, second, num_contrast in seen)
    discriminator.save(tmp_path)
    again = build(*settings)
    again.load(tmp_path, version=3)
    fake = responses(8, seed=20, version=3)
    for one in (discriminator, again):
        one.update(demonstrations(8, seed=21), fake, CONTRAST)
    assert equal(state_of(discriminator), state_of(again))
