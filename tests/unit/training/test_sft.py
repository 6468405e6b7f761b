from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest
import torch

from rlgaf_ray.config.warmup import SftWarmup
from rlgaf_ray.models.generator import build_tiny_gpt2
from rlgaf_ray.training import sft
from rlgaf_ray.training.regularization import dropout_of
from rlgaf_ray.training.sft import SftLoss, choose_steps, fine_tune
from rlgaf_ray.training.warmup import WarmupProgress, Worker
from rlgaf_ray.types import Demonstration

VOCABULARY = 32
MODEL = partial(build_tiny_gpt2, vocab_size=VOCABULARY, end_of_text_id=0, seed=0)


def texts(count: int, *, noise: float, seed: int = 0) -> list[Demonstration]:
    """Sequences that count up from a random number, with a share of random tokens."""
    rng = np.random.default_rng(seed)
    rows = (rng.integers(1, VOCABULARY, (count, 1)) + np.arange(12)) % VOCABULARY
    rows = np.where(rng.random(rows.shape) < noise, rng.integers(0, VOCABULARY, rows.shape), rows)
    return [Demonstration(row[:2], row[2:]) for row in rows.astype(np.int32)]


def chosen(demonstrations: list[Demonstration], **settings) -> tuple[int, list[WarmupProgress]]:
    seen: list[WarmupProgress] = []
    found = choose_steps(
        MODEL,
        demonstrations,
        SftWarmup(batch_size=16, learning_rate=3e-3, dropout=0.0, **settings),
        precision="float32",
        seed=0,
        worker=Worker(report=seen.append),
    )
    return found, seen


@pytest.mark.slow
def test_cross_validation_stops_on_noise_and_trains_on_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sft, "MEASURE_EVERY", 5)
    nothing, seen = chosen(texts(24, noise=1.0), max_steps=60)
    rule, _ = chosen(texts(24, noise=0.0), max_steps=60)
    assert nothing <= 10 < 30 <= rule
    assert {progress.num_steps for progress in seen} == {60}


def test_every_row_is_held_out_once_unless_one_split_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    held_out: list[int] = []

    def measured(training, rows):
        held_out.append(len(rows))
        yield from (3.0, 2.0, 1.0, 2.0, 2.0, 2.0, 2.0)

    monkeypatch.setattr(sft, "_measured", measured)
    assert chosen(texts(10, noise=1.0))[0] == round(50 * 10 / 7)  # the same number of epochs on all ten as on seven
    assert held_out == [3, 3, 2, 2]
    held_out.clear()
    assert chosen(texts(2000, noise=1.0))[0] == round(50 * 2000 / 1800)
    assert held_out == [200]


def test_dropout_is_active_in_training_and_seeded() -> None:
    model = MODEL().eval()
    tokens = torch.arange(12)[None]
    plain = model(tokens).logits
    with dropout_of(model, 0.5):
        assert not torch.equal(model(tokens).logits, plain)
    assert torch.equal(model(tokens).logits, plain) and not model.training

    def trained(seed: int, dropout: float) -> torch.Tensor:
        model = MODEL()
        settings = SftWarmup(steps=3, batch_size=4, dropout=dropout)
        fine_tune(
            model, texts(8, noise=0.0), settings, precision="float32", seed=seed, checkpoint_every=9, worker=Worker()
        )
        return model.lm_head.weight.detach()

    assert torch.equal(trained(0, 0.1), trained(0, 0.1))
    assert not torch.equal(trained(0, 0.1), trained(0, 0.0))


TWO_PROMPTS = [
    Demonstration(np.array([1, 2 + row % 2], np.int32), np.array([5 + row, 9], np.int32)) for row in range(4)
]
CONTRASTIVE = SftWarmup(contrastive_weight=3.0, contrastive_prompts=2, dropout=0.0)


def likelihoods(model: torch.nn.Module, prompts: list[list[int]]) -> torch.Tensor:
    """Return log p of each of TWO_PROMPTS' responses given the paired prompt."""
    rows = [[*prompt, *item.response_ids] for prompt, item in zip(prompts, TWO_PROMPTS, strict=True)]
    logprobs = model(torch.tensor(rows)).logits.log_softmax(-1)
    return logprobs[:, 1:3].gather(-1, torch.tensor(rows)[:, 2:, None]).sum((1, 2))


def test_the_contrastive_term_by_hand() -> None:
    """With two prompts both negatives are the other one: log (1 + 2 p(y | other) / p(y | own))."""
    model, rows = MODEL().eval(), np.arange(4)
    own = likelihoods(model, [item.prompt_ids.tolist() for item in TWO_PROMPTS])
    other = likelihoods(model, [[1, 5 - int(item.prompt_ids[1])] for item in TWO_PROMPTS])
    expected = -own.mean() / 2 + 3.0 * torch.log1p(2 * torch.exp(other - own)).mean()
    expected.backward()
    gradient = model.lm_head.weight.grad.clone()
    model.zero_grad()
    loss = SftLoss(model, TWO_PROMPTS, CONTRASTIVE, torch.device("cpu"))
    found = loss(rows, rows)
    found.backward()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    torch.testing.assert_close(model.lm_head.weight.grad, gradient, rtol=1e-4, atol=1e-6)
    shares = [loss(rows[part], rows) for part in (slice(0, 1), slice(1, 4))]
    assert float(torch.stack(shares).sum().detach()) == pytest.approx(float(found.detach()), rel=1e-5)


def test_the_contrastive_term_uses_the_other_prompts_of_the_task() -> None:
    """Each demonstration has a single other prompt, which is none of the demonstrations' prompts."""
    model, rows = MODEL().eval(), np.arange(4)
    own = likelihoods(model, [item.prompt_ids.tolist() for item in TWO_PROMPTS])
    other = likelihoods(model, [[1, 4]] * 4)
    expected = -own.mean() / 2 + 3.0 * torch.log1p(2 * torch.exp(other - own)).mean()
    loss = SftLoss(model, TWO_PROMPTS, CONTRASTIVE, torch.device("cpu"), [[np.array([1, 4])]] * 4)
    assert float(loss(rows, rows).detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_the_contrastive_term_works_with_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its forward passes are recomputed in the backward pass, which must use the same dropout masks."""
    settings = CONTRASTIVE.model_copy(update={"dropout": 0.3, "steps": 3, "batch_size": 4})

    def trained() -> torch.Tensor:
        model = MODEL()
        fine_tune(model, TWO_PROMPTS, settings, precision="float32", seed=0, checkpoint_every=10, worker=Worker())
        return model.lm_head.weight.detach()

    def unchecked(function: Callable[..., torch.Tensor], *inputs: torch.Tensor, **options: bool) -> torch.Tensor:
        assert all(isinstance(each, torch.Tensor) for each in inputs)  # or a GPU's random state is not restored
        return function(*inputs)

    again = trained()
    assert torch.equal(trained(), again)
    monkeypatch.setattr("rlgaf_ray.training.sft.checkpoint", unchecked)
    torch.testing.assert_close(trained(), again, rtol=1e-4, atol=1e-6)


def test_a_response_is_never_contrasted_with_its_own_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = SftLoss(MODEL(), texts(40, noise=0.5), CONTRASTIVE, torch.device("cpu"))
    known = [ids.tobytes() for ids in loss.prompts]
    asked: list[np.ndarray] = []

    def likelihoods(rows: np.ndarray, prompts: Sequence[np.ndarray]) -> torch.Tensor:
        asked.append(np.array([known.index(ids.tobytes()) for ids in prompts]))
        return torch.zeros(len(rows), requires_grad=True)

    monkeypatch.setattr(loss, "_likelihoods", likelihoods)
    rows = np.arange(40)
    for _ in range(20):
        loss(rows, rows)
    own = [prompts for row, prompts in enumerate(asked) if row % 3 == 0]
    others = np.concatenate([prompts for row, prompts in enumerate(asked) if row % 3])
    assert all((prompts == loss.own).all() for prompts in own)
    assert (others.reshape(-1, 40) != loss.own).all()
    assert set(others.tolist()) == set(range(len(loss.prompts)))
