"""The presets of configs/recipes/ against their papers: every setting, and losses from plain loops over tokens.

Four responses of one, three, two and four tokens; two per prompt, or one for REINFORCE++.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev, stdev
from typing import Any

import numpy as np
import pytest
import torch

from rlgaf_ray.config import Config, load_config
from rlgaf_ray.config.compose import compose
from rlgaf_ray.config.generator import ReinforceSettings
from rlgaf_ray.data.collate import collate_sequences
from rlgaf_ray.objectives.kl import kl_estimate
from rlgaf_ray.training.learner import Learner
from rlgaf_ray.training.reinforce import Reinforce
from rlgaf_ray.types import Rollout, ScoredRollout, SequenceBatch, TrainBatch

RECIPES = Path(__file__).parents[3] / "configs" / "recipes"
LENGTHS = [1, 3, 2, 4]
MAX_TOKENS = 6
REWARDS = [1.0, 3.0, -2.0, 0.5]
REINFORCE = "generator.reinforce."
PUBLISHED: dict[str, dict[str, Any]] = {
    "gad": {
        "discriminator.loss": "bradley_terry",
        "discriminator.pooling": "last",
        "discriminator.contrast_weight": 0.0,
        "discriminator.updates_per_generator_update": 1.0,
        "discriminator.learning_rate": 1e-6,
        "generator.learning_rate": 1e-6,
        "generator.max_grad_norm": 0.2,
        "rollout.samples_per_prompt": 8,
        "rollout.temperature": 0.8,
        f"{REINFORCE}clip_range": 0.2,
        f"{REINFORCE}loss_average": "token",
        f"{REINFORCE}advantage_scale": "group",
        f"{REINFORCE}kl": {"coefficient": 0.001, "estimator": "k3", "placement": "loss", "target": None},
    },
    "rloo": {
        "rollout.samples_per_prompt": 4,
        f"{REINFORCE}baseline": "leave_one_out",
        f"{REINFORCE}reward_to_go": False,
        f"{REINFORCE}advantage_scale": "none",
        f"{REINFORCE}clip_range": None,
        f"{REINFORCE}kl": {"coefficient": 0.05, "estimator": "k1", "placement": "reward", "target": None},
    },
    "grpo": {
        "rollout.samples_per_prompt": 64,
        f"{REINFORCE}loss_average": "sequence",
        f"{REINFORCE}advantage_scale": "group",
        f"{REINFORCE}kl": {"coefficient": 0.04, "estimator": "k3", "placement": "loss", "target": None},
    },
    "dr_grpo": {
        "rollout.samples_per_prompt": 8,
        f"{REINFORCE}loss_average": "constant",
        f"{REINFORCE}advantage_scale": "none",
        f"{REINFORCE}kl": {"coefficient": 0.0, "estimator": "k3", "placement": "loss", "target": None},
    },
    "reinforce_plus_plus": {
        "rollout.samples_per_prompt": 1,
        "reward.clip": 10.0,
        f"{REINFORCE}baseline": "batch_mean",
        f"{REINFORCE}advantage_scale": "batch",
        f"{REINFORCE}advantage_clip": None,
        f"{REINFORCE}minibatches": 8,
        f"{REINFORCE}kl": {"coefficient": 0.01, "estimator": "k1", "placement": "reward", "target": None},
    },
    "gspo": {
        "rollout.samples_per_prompt": 8,
        f"{REINFORCE}ratio": "sequence",
        f"{REINFORCE}clip_range": 3e-4,
        f"{REINFORCE}clip_range_high": 4e-4,
        f"{REINFORCE}loss_average": "sequence",
        f"{REINFORCE}minibatches": 4,
        f"{REINFORCE}kl": {"coefficient": 0.0, "estimator": "k3", "placement": "loss", "target": None},
    },
}


@dataclass(frozen=True)
class Case:
    """Token log-probs of each response: current, before the first step, reference, engine."""

    now: list[list[float]]
    old: list[list[float]]
    reference: list[list[float]]
    engine: list[list[float]]
    rewards: list[float]


def clipped(ratio: float, advantage: float, low: float, high: float) -> float:
    return min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)


def of_groups(rewards: list[float], deviation: Callable[[list[float]], float]) -> list[float]:
    """Each reward minus the mean of its pair, divided by the pair's deviation."""
    pairs = [rewards[:2], rewards[2:]]
    return [(reward - fmean(pair)) / deviation(pair) for pair in pairs for reward in pair]


def grpo_terms(case: Case, coefficient: float) -> list[list[float]]:
    """Return -min(r A, clip(r) A) + coefficient * k3 for every token."""
    advantages = of_groups(case.rewards, stdev)
    return [
        [
            -clipped(math.exp(now - old), advantage, 0.2, 0.2)
            + coefficient * (math.exp(reference - now) - 1 - (reference - now))
            for now, old, reference in zip(*rows, strict=True)
        ]
        for advantage, *rows in zip(advantages, case.now, case.old, case.reference, strict=True)
    ]


def gad(case: Case) -> float:
    return fmean(term for row in grpo_terms(case, 0.001) for term in row)


def grpo(case: Case) -> float:
    return fmean(fmean(row) for row in grpo_terms(case, 0.04))


def dr_grpo(case: Case) -> float:
    advantages = of_groups(case.rewards, lambda pair: 1.0)
    terms = [
        clipped(math.exp(now - old), advantage, 0.2, 0.2)
        for advantage, *rows in zip(advantages, case.now, case.old, strict=True)
        for now, old in zip(*rows, strict=True)
    ]
    return -sum(terms) / (len(LENGTHS) * MAX_TOKENS)


def gspo(case: Case) -> float:
    advantages = of_groups(case.rewards, stdev)
    ratios = [math.exp(fmean(now) - fmean(old)) for now, old in zip(case.now, case.old, strict=True)]
    return -fmean(clipped(ratio, advantage, 3e-4, 4e-4) for ratio, advantage in zip(ratios, advantages, strict=True))


def rloo(case: Case) -> float:
    totals = [
        reward - 0.05 * (sum(engine) - sum(reference))
        for reward, engine, reference in zip(case.rewards, case.engine, case.reference, strict=True)
    ]
    advantages = [totals[index] - totals[index ^ 1] for index in range(4)]  # leave-one-out of two samples
    return -fmean(advantage * sum(now) for advantage, now in zip(advantages, case.now, strict=True))


def reinforce_plus_plus(case: Case) -> float:
    returns = [
        [
            reward - 0.01 * sum(e - r for e, r in zip(engine[start:], reference[start:], strict=True))
            for start in range(len(engine))
        ]
        for reward, engine, reference in zip(case.rewards, case.engine, case.reference, strict=True)
    ]
    everything = [value for row in returns for value in row]
    mean, deviation = fmean(everything), pstdev(everything)
    return -fmean(
        clipped(math.exp(now - old), (value - mean) / deviation, 0.2, 0.2)
        for rows in zip(case.now, case.old, returns, strict=True)
        for now, old, value in zip(*rows, strict=True)
    )


BY_HAND = {
    "gad": gad,
    "rloo": rloo,
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "reinforce_plus_plus": reinforce_plus_plus,
    "gspo": gspo,
}


def stated(tree: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        tree = tree[part]
    return tree


def test_every_recipe_is_tested() -> None:
    assert BY_HAND.keys() == PUBLISHED.keys() == {path.stem for path in RECIPES.glob("*.yaml")}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_states_its_papers_settings(name: str) -> None:
    """Stated there or in the recipe that it extends: a default may change."""
    tree = compose([RECIPES / f"{name}.yaml"]).values
    assert {key: stated(tree, key) for key in PUBLISHED[name]} == PUBLISHED[name]
    assert tree["generator"]["reinforce"].keys() == ReinforceSettings.model_fields.keys() - {"baseline_decay"}
    assert {"batch_size", "samples_per_prompt", "temperature"} == tree["rollout"].keys()


def config(name: str) -> Config:
    samples = 1 if name == "reinforce_plus_plus" else 2
    sizes = ["rollout.batch_size=4", f"rollout.samples_per_prompt={samples}", f"task.response_tokens={MAX_TOKENS}"]
    one_step = "generator.reinforce.minibatches=1"
    return load_config(RECIPES / f"{name}.yaml", [*sizes, one_step, "learner.precision=float32"])


def ragged(values: torch.Tensor, mask: torch.Tensor) -> list[list[float]]:
    return [row[kept].tolist() for row, kept in zip(values, mask, strict=True)]


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("noise", [1e-4, 0.3])
def test_the_loss_far_from_the_old_policy(name: str, noise: float) -> None:
    """Some tokens are clipped (for GSPO some responses, at 1e-4), and padding has arbitrary values."""
    settings = config(name).generator.reinforce
    algorithm = Reinforce(settings)
    generator = torch.Generator().manual_seed(1)
    mask = (torch.arange(5) >= 1) & (torch.arange(5) < 1 + torch.tensor(LENGTHS)[:, None])
    old = -torch.rand(4, 5, generator=generator, dtype=torch.float64) * 3
    now, reference, engine = (
        old + scale * torch.randn(4, 5, generator=generator, dtype=torch.float64) for scale in (noise, 0.5, 0.01)
    )
    case = Case(ragged(now, mask), ragged(old, mask), ragged(reference, mask), ragged(engine, mask), REWARDS)
    now, old, reference, engine = (values.masked_fill(~mask, -7.0) for values in (now, old, reference, engine))
    batch = TrainBatch(
        SequenceBatch(torch.zeros_like(mask).long(), mask.long(), mask),
        engine,
        scores=torch.tensor(REWARDS),
        group_size=1 if name == "reinforce_plus_plus" else 2,
    )
    assert settings.kl.estimator != "exact"
    distance = kl_estimate(now, reference, estimator=settings.kl.estimator)
    penalties = torch.zeros_like(now)
    if settings.kl.placement == "reward":
        penalties = settings.kl.coefficient * (engine - reference) * mask
    advantages = algorithm.advantages(batch, batch.scores.double(), penalties)
    loss, metrics = algorithm.loss(now, old, advantages, distance, mask, max_tokens=MAX_TOKENS)
    assert loss.item() == pytest.approx(BY_HAND[name](case), rel=1e-5)
    bound = name != "rloo" and (noise > 0.1 or name == "gspo")
    assert bound == (metrics.get("clip_fraction", torch.zeros(())).item() > 0)


@pytest.mark.parametrize("name", BY_HAND)
def test_the_loss_of_a_learner(folder: Path, name: str) -> None:
    """The full update, with a policy that differs from its reference and from the engine."""
    settings = config(name)
    learner = Learner(folder, settings, pad_token_id=0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in learner.policy.model.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=generator))
    draws = np.random.default_rng(3)
    samples = settings.rollout.samples_per_prompt
    items = [
        Rollout(
            prompt_id=row // samples,
            prompt_ids=np.array([3, 4], np.int32),
            response_ids=draws.integers(1, 64, length).astype(np.int32),
            behaviour_logprobs=draws.uniform(-5, -3, length).astype(np.float32),
            finish_reason="stop",
            policy_version=0,
        )
        for row, length in enumerate(LENGTHS)
    ]
    sequences = collate_sequences(items, 0)
    masked = [0] if settings.stop_at_end_of_text is False else []
    logprobs = []
    for network in (learner.policy.model, learner.policy.reference):
        with torch.no_grad():
            logits = network(input_ids=sequences.token_ids).logits[:, :-1] / settings.rollout.temperature
        logits[..., masked] = -math.inf
        rows = logits.log_softmax(-1).gather(2, sequences.token_ids[:, 1:, None]).squeeze(2)
        logprobs.append(ragged(rows, sequences.response_mask[:, 1:]))
    rewards = REWARDS
    if settings.reward.whiten:
        rewards = [(reward - fmean(REWARDS)) / pstdev(REWARDS) for reward in REWARDS]
    now, reference = logprobs
    case = Case(now, now, reference, [item.behaviour_logprobs.tolist() for item in items], rewards)
    scored = [ScoredRollout(item, reward, 0, reward) for item, reward in zip(items, REWARDS, strict=True)]
    metrics = learner.update(scored, iteration=0)
    assert metrics["generator/loss"] == pytest.approx(BY_HAND[name](case), rel=1e-4, abs=1e-5)
