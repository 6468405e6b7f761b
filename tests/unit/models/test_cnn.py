"""SeqGAN's discriminator: equations, padding, export, dropout and learning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rlgaf_ray.models.cnn import SEQGAN_FILTERS, SEQGAN_WINDOWS, CnnConfig, CnnDiscriminator, build_cnn
from rlgaf_ray.objectives.discriminator import discriminator_loss
from rlgaf_ray.types import SequenceBatch

WINDOWS, FILTERS = (1, 2, 4), (5, 6, 7)


def cnn(seed: int = 1) -> CnnDiscriminator:
    return build_cnn(
        vocab_size=30, pad_token_id=0, seed=seed, embedding_size=8, window_sizes=WINDOWS, num_filters=FILTERS
    )


def batch(tokens: torch.Tensor, padding: int = 0, *, filler: int = 0) -> SequenceBatch:
    attention = torch.nn.functional.pad(torch.ones_like(tokens), (0, padding))
    response = attention.bool()
    response[:, :2] = False
    return SequenceBatch(torch.nn.functional.pad(tokens, (0, padding), value=filler), attention, response)


def test_the_logit_matches_the_equations() -> None:
    """Every window by hand, for two tokens, fewer than the widest window."""
    network: Any = cnn().network
    with torch.no_grad():
        embedded = network.embedding.weight[[3, 9]]
        reach = torch.cat([embedded, torch.zeros(3, 8)])
        pooled = []
        for window, convolution in zip(WINDOWS, network.convolutions, strict=True):
            places = [
                torch.einsum("fed,de->f", convolution.weight, reach[start : start + window]) + convolution.bias
                for start in (0, 1)
            ]
            pooled.append(torch.stack(places).amax(0).relu())
        features = torch.cat(pooled)
        gate = (network.gate.weight @ features + network.gate.bias).sigmoid()
        features = gate * network.highway(features).relu() + (1 - gate) * features
        expected = network.score.weight[0] @ features + network.score.bias[0]
        found = cnn()(batch(torch.tensor([[3, 9]])))
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("filler", [0, 17])
def test_padding_does_not_change_the_logit(filler: int) -> None:
    tokens = torch.randint(30, (6, 5), generator=torch.Generator().manual_seed(0))
    model = cnn()
    with torch.no_grad():
        plain = model(batch(tokens))
        for padding in (1, 2, 9):
            torch.testing.assert_close(model(batch(tokens, padding, filler=filler)), plain, atol=1e-6, rtol=0)
        assert abs(plain - model(batch(tokens.roll(1, 0)))).max() > 1e-3  # the logit depends on the tokens


def test_export_and_load(tmp_path: Path) -> None:
    model, tokens = cnn(), torch.tensor([[1, 2, 3]])
    model.export(tmp_path)
    loaded = CnnDiscriminator.load(tmp_path)
    assert not loaded.training and loaded.network.config.window_sizes == list(WINDOWS)
    with torch.no_grad():
        assert torch.equal(loaded(batch(tokens)), model(batch(tokens)))
        assert not torch.equal(cnn(seed=2)(batch(tokens)), model(batch(tokens)))


def test_dropout_applies_only_in_training() -> None:
    model, tokens = cnn(), torch.tensor([[1, 2, 3]])
    torch.manual_seed(0)
    with torch.no_grad():
        assert len({float(model(batch(tokens))) for _ in range(4)}) == 1
        model.train()
        assert len({float(model(batch(tokens))) for _ in range(4)}) == 4


def test_the_penalty_is_a_tenth_of_the_squared_norm() -> None:
    model = cnn()
    with torch.no_grad():
        model.network.score.weight.fill_(0.5)
        model.network.score.bias.fill_(3.0)
    assert model.penalty().item() == pytest.approx(0.2 * (18 * 0.25 + 9.0) / 2)


def test_the_default_is_seqgans_size() -> None:
    assert sum(SEQGAN_FILTERS) == 1720 and len(SEQGAN_WINDOWS) == 12
    with pytest.raises(ValueError, match="2 window_sizes need as many num_filters, got 1"):
        CnnConfig(window_sizes=(1, 2), num_filters=(5,))


def test_it_learns_an_order_that_counts_do_not_reveal() -> None:
    """Real: 7 is followed by 8. Fake: the same tokens with 7 and 8 swapped."""
    rng = torch.Generator().manual_seed(0)
    model = cnn().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    def draw(size: int) -> tuple[torch.Tensor, torch.Tensor]:
        real = torch.randint(10, 30, (size, 8), generator=rng)
        fake = real.clone()
        places, rows = torch.randint(7, (size,), generator=rng), torch.arange(size)
        real[rows, places], real[rows, places + 1] = 7, 8
        fake[rows, places], fake[rows, places + 1] = 8, 7
        return real, fake

    for _ in range(60):
        real, fake = draw(32)
        loss, _ = discriminator_loss(model(batch(real)), model(batch(fake)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    real, fake = draw(200)
    with torch.no_grad():
        _, metrics = discriminator_loss(model(batch(real)), model(batch(fake)))
    assert metrics["accuracy"] > 0.9
