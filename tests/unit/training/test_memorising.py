"""What keeps the discriminator from learning demonstrations by heart, and the control that lets it learn noise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import softplus

from rlgaf_ray.config import load_config
from rlgaf_ray.objectives.discriminator import discriminator_loss
from rlgaf_ray.training.batching import Batching
from rlgaf_ray.training.discriminator import Discriminator
from tests.unit.training.test_stabilisers import CONTRAST, FAKE, REAL, equal, logits, state_of


@pytest.fixture
def build(folder: Path):
    def make(*overrides: str) -> Discriminator:
        settings = ["learner.precision=float32", *(f"discriminator.{each}" for each in overrides)]
        return Discriminator(folder, load_config(None, settings), pad_token_id=0)

    return make


def trained(discriminator: Discriminator) -> dict[str, torch.Tensor]:
    discriminator.update(REAL, FAKE, CONTRAST)
    return state_of(discriminator)


def test_dropout_is_of_training_alone_and_seeded_for_each_update(build) -> None:
    first, second, plain = build("dropout=0.3"), build("dropout=0.3"), build()
    assert logits(first) == logits(plain)
    again = trained(second)
    assert equal(trained(first), again) and not equal(again, trained(plain))
    assert logits(first) == logits(first) and not first.model.network.training
    other = build("dropout=0.3")
    other.version = 1  # the second update draws otherwise
    assert not equal(trained(other), again)


def test_dropout_is_in_embeddings_attention_and_residuals(build, monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-2 of four blocks: once after the embeddings, and on weights, attention and MLP of each block."""
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


def test_dropout_of_a_recomputed_block_is_the_same(folder: Path) -> None:
    states = []
    for recomputed in ("false", "true"):
        settings = [f"learner.activation_checkpointing={recomputed}", "discriminator.dropout=0.3"]
        config = load_config(None, ["learner.precision=float32", *settings])
        states.append(trained(Discriminator(folder, config, pad_token_id=0)))
    assert equal(*states)


@pytest.mark.parametrize("negative", [True, False])
def test_the_whole_batch_decides_whether_the_positive_unlabelled_risk_counts(build, negative: bool) -> None:
    """Micro-batches of one sequence, whose own risk is positive, give the gradient of the whole batch."""
    gradients = []
    for size in (64, 1):
        discriminator = build("loss=positive_unlabelled", "positive_share=0", "learning_rate=1e-3")
        for _ in range(12 if negative else 2):  # after 12 it knows them by heart
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


def test_the_risk_is_decided_with_the_draws_that_are_learned_from(build, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []

    def watched(real: torch.Tensor, fake: torch.Tensor, **options):
        seen.append(torch.cat([real, fake]).detach())
        return discriminator_loss(real, fake, **options)

    monkeypatch.setattr("rlgaf_ray.training.discriminator.discriminator_loss", watched)
    discriminator = build("loss=positive_unlabelled", "dropout=0.3", "instance_noise=0.3")
    discriminator.batching = Batching(1)
    discriminator.update(REAL, FAKE)
    assert len(seen) == 1 + 6 + 1  # all rows; three in each pass; the metrics
    assert torch.equal(seen[0], seen[-1]) and len(set(seen[0].tolist())) == 16
