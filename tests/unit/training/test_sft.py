from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from rlgaf_ray.config.warmup import SftWarmup
from rlgaf_ray.models.generator import build_tiny_gpt2
from rlgaf_ray.training import sft
from rlgaf_ray.training.regularization import dropout_of
from rlgaf_ray.training.sft import choose_steps
from rlgaf_ray.training.warmup import Progress, Worker, warm_up_generator
from rlgaf_ray.types import TextBlocks

VOCABULARY = 32
MODEL = partial(build_tiny_gpt2, vocab_size=VOCABULARY, end_of_text_id=0, seed=0)


def texts(count: int, *, noise: float, seed: int = 0) -> TextBlocks:
    """Counting up from a random number, with random tokens in between."""
    rng = np.random.default_rng(seed)
    rows = (rng.integers(1, VOCABULARY, (count, 1)) + np.arange(12)) % VOCABULARY
    rows = np.where(rng.random(rows.shape) < noise, rng.integers(0, VOCABULARY, rows.shape), rows)
    return TextBlocks(rows.astype(np.int32), np.broadcast_to(np.arange(12) > 1, rows.shape))


def chosen(blocks: TextBlocks, **settings) -> tuple[int, list[Progress]]:
    seen: list[Progress] = []
    found = choose_steps(
        MODEL,
        blocks,
        SftWarmup(batch_size=16, learning_rate=3e-3, dropout=0.0, **settings),
        precision="float32",
        seed=0,
        worker=Worker(report=seen.append),
    )
    return found, seen


def test_noise_is_not_learned_and_a_rule_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sft, "EVERY", 5)
    nothing, seen = chosen(texts(24, noise=1.0), max_steps=60)
    rule, _ = chosen(texts(24, noise=0.0), max_steps=60)
    assert nothing <= 10 < 30 <= rule
    assert {progress.num_steps for progress in seen} == {60}


def test_every_row_is_held_out_once_unless_a_tenth_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    held_out: list[int] = []

    def measured(training, rows):
        held_out.append(len(rows))
        yield from (3.0, 2.0, 1.0, 2.0, 2.0, 2.0, 2.0)

    monkeypatch.setattr(sft, "_measured", measured)
    assert chosen(texts(10, noise=1.0))[0] == round(50 * 10 / 7)  # as many passes over all ten as over seven
    assert held_out == [3, 3, 2, 2]
    held_out.clear()
    assert chosen(texts(2000, noise=1.0))[0] == round(50 * 2000 / 1800)
    assert held_out == [200]


def test_dropout_is_on_while_it_learns_and_the_draws_follow_the_seed() -> None:
    model = MODEL().eval()
    tokens = torch.arange(12)[None]
    plain = model(tokens).logits
    with dropout_of(model, 0.5):
        assert not torch.equal(model(tokens).logits, plain)
    assert torch.equal(model(tokens).logits, plain) and not model.training

    def trained(seed: int, dropout: float) -> torch.Tensor:
        model = MODEL()
        settings = SftWarmup(steps=3, batch_size=4, dropout=dropout)
        warm_up_generator(
            model, texts(8, noise=0.0), settings, precision="float32", seed=seed, checkpoint_every=9, worker=Worker()
        )
        return model.lm_head.weight.detach()

    assert torch.equal(trained(0, 0.1), trained(0, 0.1))
    assert not torch.equal(trained(0, 0.1), trained(0, 0.0))
