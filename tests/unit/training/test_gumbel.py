from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import softplus
from transformers import GPT2LMHeadModel

from rlgaf_ray.config import Config, load_config
from rlgaf_ray.data.collate import collate
from rlgaf_ray.errors import UserError
from rlgaf_ray.models.generator import build_tiny_gpt2
from rlgaf_ray.models.straight_through import align, response_logits
from rlgaf_ray.objectives.kl import exact_kl
from rlgaf_ray.training.gumbel import GumbelSoftmax, check_soft_tokens
from rlgaf_ray.training.learner import Learner
from rlgaf_ray.training.neural_discriminator import NeuralDiscriminator
from rlgaf_ray.types import Rollout, ScoredRollout, WeightUpdate

VOCABULARY = 64
MODES = ["autoregressive", "conditional"]
WEIGHT = "transformer.h.3.mlp.c_fc.weight"


def config(mode: str, *overrides: str) -> Config:
    small = [
        "generator.algorithm=gumbel",
        f"generator.gumbel.mode={mode}",
        "rollout.batch_size=8",
        "task.response_tokens=4",
        "learner.precision=float32",
    ]
    return load_config(None, [*small, *overrides])


def weights(discriminator: NeuralDiscriminator) -> WeightUpdate:
    update = discriminator.weights()
    assert update is not None
    return update


def pair(folder: Path, settings: Config) -> tuple[Learner, NeuralDiscriminator]:
    discriminator = NeuralDiscriminator(folder, settings, pad_token_id=0)
    with torch.no_grad():
        discriminator.model.network.score.weight.mul_(20)  # a new head gives nearly constant logits
    learner = Learner(folder, settings, pad_token_id=0)
    learner.load_discriminator(weights(discriminator))
    return learner, discriminator


def scored(discriminator: NeuralDiscriminator) -> list[ScoredRollout]:
    generator = np.random.default_rng(0)
    rollouts = [
        Rollout(
            prompt_id=index // 4,
            prompt_ids=np.array([3, 4, 5][: 2 + index // 4], np.int32),
            response_ids=generator.integers(1, VOCABULARY, 2 + index % 3).astype(np.int32),
            behaviour_logprobs=np.full(2 + index % 3, -4.0, np.float32),
            finish_reason="length",
            policy_version=0,
        )
        for index in range(8)
    ]
    return [replace(item, reward=item.score) for item in discriminator.score(rollouts)]


@pytest.mark.parametrize("mode", MODES)
def test_micro_batches_do_not_change_the_update(folder: Path, mode: str) -> None:
    weights, rows = [], []
    for size in (8, 3):
        learner, discriminator = pair(folder, config(mode, f"learner.micro_batch_size={size}"))
        rows.append(learner.update(scored(discriminator), iteration=0))
        weights.append(learner.weights(1).arrays[WEIGHT].copy())
    np.testing.assert_allclose(weights[0], weights[1], atol=2e-6)
    assert rows[0] == pytest.approx(rows[1], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_updates_raise_the_discriminators_logit(folder: Path, mode: str) -> None:
    overrides = ["generator.learning_rate=1e-3", "generator.gumbel.kl.coefficient=0", "run.iterations=20"]
    learner, discriminator = pair(folder, config(mode, *overrides))
    policy, algorithm = learner.policy, learner.algorithm
    assert isinstance(algorithm, GumbelSoftmax)
    items = scored(discriminator)
    found = []
    for iteration in range(12):
        metrics = learner.update(items, iteration=iteration)
        # The policy's own samples with fixed noise, in both modes.
        batch = align(collate(items, 0, 4).sequences)
        probe = algorithm.autoregressive(policy, batch, algorithm.noise(torch.arange(8), 0), 1.0, 0.0)
        policy.optimizer.zero_grad()
        found.append(float(probe["soft_logit"]))
    assert metrics["generator/non_finite"] == 0.0
    assert found[-1] > found[0] + 0.3
    assert metrics["generator/kl"] > 0  # logged even with a zero coefficient


@pytest.mark.parametrize("mode", MODES)
def test_the_loss_is_cross_entropy_and_exact_kl(folder: Path, mode: str) -> None:
    settings = config(mode, "generator.gumbel.kl.coefficient=0.5", "generator.learning_rate=1e-2")
    learner, discriminator = pair(folder, settings)
    items = scored(discriminator)
    learner.update(items, iteration=0)  # move away from the reference
    policy, algorithm = learner.policy, learner.algorithm
    assert isinstance(algorithm, GumbelSoftmax)
    before = {name: value.copy() for name, value in learner.weights(1).arrays.items()}
    metrics = learner.update(items, iteration=1)
    assert metrics["generator/loss"] == pytest.approx(
        metrics["generator/adversarial_loss"] + 0.5 * metrics["generator/kl"]
    )
    assert metrics["generator/kl"] > 1e-3
    if mode == "conditional":  # the responses are known, so recompute everything by hand
        scores = torch.tensor([item.score for item in items])
        assert metrics["generator/adversarial_loss"] == pytest.approx(float(softplus(-scores).mean()), rel=1e-5)
        assert metrics["generator/score_gap"] < 1e-5
        policy.model.load_state_dict({name: torch.from_numpy(value) for name, value in before.items()})
        batch = align(collate(items, 0, 4).sequences)
        total = 0.0
        with torch.no_grad():
            ours, theirs = (
                response_logits(model, batch, temperature=1.0, masked_token_ids=[0]).log_softmax(-1)[..., 1:]
                for model in (policy.model, policy.reference)
            )
            for row, mask in enumerate(batch.response_mask):
                total += float(exact_kl(ours, theirs)[row, mask].mean()) / 8
        assert metrics["generator/kl"] == pytest.approx(total, rel=1e-4)


def test_the_kl_pulls_back_to_the_reference(folder: Path) -> None:
    def drift(coefficient: float) -> float:
        overrides = [f"generator.gumbel.kl.coefficient={coefficient}", "generator.learning_rate=1e-3"]
        learner, discriminator = pair(folder, config("autoregressive", *overrides))
        items = scored(discriminator)
        return [learner.update(items, iteration=iteration)["generator/kl"] for iteration in range(8)][-1]

    assert drift(5.0) < 0.5 * drift(0.0)


def test_noise_depends_on_run_iteration_and_row(folder: Path) -> None:
    def draws(seed: int, iteration: int) -> list[float]:
        learner, _ = pair(folder, config("autoregressive", f"run.seed={seed}"))
        assert isinstance(learner.algorithm, GumbelSoftmax)
        return [float(torch.rand((), generator=g)) for g in learner.algorithm.noise(torch.arange(3), iteration)]

    assert draws(0, 5) == draws(0, 5)
    assert len({*draws(0, 5), *draws(0, 6), *draws(1, 5)}) == 9


def test_a_resumed_learner_continues_identically(folder: Path, tmp_path: Path) -> None:
    settings = config("autoregressive", "generator.gumbel.kl.target=0.01", "generator.gumbel.kl.horizon=10")
    learner, discriminator = pair(folder, settings)
    items = scored(discriminator)
    for iteration in range(2):
        learner.update(items, iteration=iteration)
    learner.save(tmp_path)
    again, _ = pair(folder, settings)
    again.load(tmp_path)
    again.load_discriminator(weights(discriminator))
    assert learner.update(items, iteration=2) == again.update(items, iteration=2)
    assert np.array_equal(learner.weights(1).arrays[WEIGHT], again.weights(1).arrays[WEIGHT])


def test_the_discriminator_copy_must_match_the_scores_version(folder: Path) -> None:
    settings = config("conditional")
    learner, discriminator = pair(folder, settings)
    items = scored(discriminator)
    with pytest.raises(AssertionError, match="not from discriminator version None"):
        Learner(folder, settings, pad_token_id=0).update(items, iteration=0)
    discriminator.version = 1
    learner.load_discriminator(weights(discriminator))
    with pytest.raises(AssertionError, match="not from discriminator version 1"):
        learner.update(items, iteration=0)
    reinforce = Learner(folder, load_config(None, ["learner.precision=float32"]), pad_token_id=0)
    with pytest.raises(AssertionError, match="Reinforce has no discriminator"):
        reinforce.load_discriminator(weights(discriminator))


def test_the_discriminator_copy_stays_frozen(folder: Path) -> None:
    learner, discriminator = pair(folder, config("autoregressive"))
    before = weights(discriminator).arrays
    learner.update(scored(discriminator), iteration=0)
    assert isinstance(learner.algorithm, GumbelSoftmax)
    for name, value in learner.algorithm.discriminator.network.state_dict().items():
        assert np.array_equal(value.numpy(), before[name])
    with torch.no_grad():
        discriminator.model.network.score.weight.zero_()
    assert float(learner.algorithm.discriminator.network.score.weight.abs().sum()) > 0  # a copy, not a view


def test_a_model_that_needs_token_ids_raises() -> None:
    class WantsIds(GPT2LMHeadModel):
        def forward(self, input_ids=None, **inputs):  # like Gemma 3n, which looks up per-layer embeddings
            if input_ids is None:
                raise ValueError("give input_ids")
            return super().forward(input_ids, **inputs)

    model = build_tiny_gpt2(vocab_size=VOCABULARY, end_of_text_id=0, seed=3)
    check_soft_tokens(model)
    with pytest.raises(UserError, match="WantsIds also needs token ids"):
        check_soft_tokens(WantsIds(model.config))
