"""What keeps the discriminator from learning demonstrations by heart, and the control that lets it learn noise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlgaf_ray.config import load_config
from rlgaf_ray.training.discriminator import Discriminator
from tests.unit.training.test_stabilisers import CONTRAST, FAKE, REAL, equal, logits, state_of


@pytest.fixture
def build(folder: Path):
    def make(*overrides: str) -> Discriminator:
        settings = ["learner.precision=float32", *(f"discriminator.{each}" for each in overrides)]
        return Discriminator(folder, load_config(None, settings), pad_token_id=0)

    return make


def trained(discriminator: Discriminator, updates: int = 1) -> dict[str, torch.Tensor]:
    for _ in range(updates):
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
