from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rlgaf_ray.config import load_config
from rlgaf_ray.errors import UserError
from rlgaf_ray.models.generator import build_tiny_gpt2
from rlgaf_ray.models.lstm import build_lstm
from rlgaf_ray.training.averaging import MovingAverage, update_average
from rlgaf_ray.training.learner import Learner
from rlgaf_ray.types import Rollout, ScoredRollout

VOCABULARY = 32
WEIGHT = "transformer.h.0.mlp.c_fc.weight"


def filled(module: nn.Module, value: float) -> nn.Module:
    with torch.no_grad():
        for weight in module.parameters():
            weight.fill_(value)
    return module


def test_an_update_at_seqgans_rate() -> None:
    average, network = (build_lstm(vocab_size=20, end_of_text_id=0, seed=seed) for seed in (1, 2))
    before = [weight.clone() for weight in average.parameters()]
    update_average(average, network, rate=0.8)
    for old, new, target in zip(before, average.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(new, 0.8 * old + 0.2 * target)
    filled(average, 1.0)
    filled(network, 3.0)
    for expected in (1.5, 1.875):  # 1 + 0.25 * 2, then 0.75 * 1.5 + 0.25 * 3
        update_average(average, network, rate=0.75)
        assert all(bool((weight == expected).all()) for weight in average.parameters())
    with pytest.raises(ValueError, match=r"rate=1\.5"):
        update_average(average, network, rate=1.5)


def follow(values: list[float], *, rate: float, debiased: bool) -> list[float]:
    """Return the average after each value, for a network initialised at 100."""
    network = build_lstm(vocab_size=5, end_of_text_id=0, seed=1, embedding_size=2, hidden_size=2)
    average = MovingAverage(network, rate=rate, debiased=debiased)
    filled(average.network, 100.0)
    other = build_lstm(vocab_size=5, end_of_text_id=0, seed=1, embedding_size=2, hidden_size=2)
    found = []
    for value in values:
        average.update(filled(other, value))
        found.append(float(next(average.network.parameters()).flatten()[0]))
    return found


def test_a_debiased_average_excludes_the_initial_network() -> None:
    # weights of the steps so far: 1; 1/2, 1; 1/4, 1/2, 1
    assert follow([8.0, 2.0, 6.0], rate=0.5, debiased=True) == pytest.approx([8.0, 6 / 1.5, 9 / 1.75])
    assert follow([8.0, 2.0], rate=0.5, debiased=False) == pytest.approx([54.0, 28.0])


def test_the_effective_rate_rises_to_the_rate() -> None:
    network = build_lstm(vocab_size=5, end_of_text_id=0, seed=1, embedding_size=2, hidden_size=2)
    average = MovingAverage(network, rate=0.98, debiased=True)
    rates = []
    for average.num_steps in (1, 2, 3, 400):
        rates.append(average.rate_now)
    # (r - r^n) / (1 - r^n): 0; 0.0196 / 0.0396; 0.038808 / 0.058808; nearly 0.98
    assert rates == pytest.approx([0.0, 0.4949495, 0.6599102, 0.98], abs=1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    build_tiny_gpt2(vocab_size=VOCABULARY, end_of_text_id=0, seed=3).save_pretrained(path)
    return path


def learner(folder: Path, *overrides: str) -> Learner:
    small = ["rollout.batch_size=4", "rollout.samples_per_prompt=4", "learner.precision=float32"]
    return Learner(folder, load_config(None, [*small, "generator.average_decay=0.5", *overrides]), pad_token_id=0)


def scored() -> list[ScoredRollout]:
    prompt, generator = np.array([3, 4], np.int32), np.random.default_rng(0)
    return [
        ScoredRollout(
            Rollout(
                0, prompt, generator.integers(1, VOCABULARY, 3).astype(np.int32), np.zeros(3, np.float32), "stop", 0
            ),
            score=reward,
            discriminator_version=0,
            reward=reward,
            token_scores=np.array([0.0, 0.0, reward], np.float32),
        )
        for reward in (1.0, 0.0, -1.0, 2.0)
    ]


def test_the_learner_averages_after_each_step_and_restores_averages(folder: Path, tmp_path: Path) -> None:
    first, weights = learner(folder), []
    assert np.array_equal(first.weights(0, network="average").arrays[WEIGHT], first.weights(0).arrays[WEIGHT])
    for iteration in range(2):
        first.update(scored(), iteration=iteration)
        weights.append(first.weights(0).arrays[WEIGHT].copy())
    averaged = first.weights(2, network="average").arrays[WEIGHT]
    np.testing.assert_allclose(averaged, (weights[0] + 2 * weights[1]) / 3, atol=1e-7)
    assert first.mean_nll([scored()[0].rollout], model="average") != first.mean_nll(
        [scored()[0].rollout], model="policy"
    )

    first.save(tmp_path)
    second = learner(folder)
    second.load(tmp_path)
    for one in (first, second):
        one.update(scored(), iteration=2)
    for network in ("policy", "average"):
        ours, theirs = (one.weights(3, network=network).arrays[WEIGHT] for one in (first, second))
        np.testing.assert_array_equal(ours, theirs)


def test_ppo_averages_after_every_optimiser_step(folder: Path) -> None:
    four = learner(folder, "generator.algorithm=ppo", "generator.ppo.critic_warmup_iterations=1")
    four.update(scored(), iteration=0)
    assert four.policy.averages["average"].num_steps == 0  # the policy did not move
    four.update(scored(), iteration=1)
    assert four.policy.averages["average"].num_steps == 4  # two epochs of two minibatches


def test_seqgans_rollout_policy_is_a_separate_average(folder: Path) -> None:
    both = learner(folder, "generator.algorithm=seqgan", "generator.seqgan.rollout_policy_rate=0.75")
    start = both.weights(0).arrays[WEIGHT].copy()
    both.update(scored(), iteration=0)
    moved = both.weights(1).arrays[WEIGHT]
    np.testing.assert_array_equal(both.weights(1, network="average").arrays[WEIGHT], moved)
    slow = both.weights(1, network="rollout_policy").arrays[WEIGHT]
    np.testing.assert_allclose(slow, 0.75 * start + 0.25 * moved, atol=1e-7)


def test_an_average_cannot_be_enabled_in_a_resumed_run(folder: Path, tmp_path: Path) -> None:
    learner(folder, "generator.average_decay=0").save(tmp_path)
    with pytest.raises(UserError, match=r"has no moving average 'average': generator\.average_decay"):
        learner(folder).load(tmp_path)
