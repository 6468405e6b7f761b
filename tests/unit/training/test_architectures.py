"""The table of discriminator architectures, and training of the generative critic."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from rlgaf_ray.config import Config, load_config
from rlgaf_ray.config.discriminator import (
    ARCHITECTURE_TRAITS,
    LOSS_TRAITS,
    DiscriminatorArchitecture,
    DiscriminatorLoss,
)
from rlgaf_ray.errors import UserError
from rlgaf_ray.models.generator import build_tiny_gpt2
from rlgaf_ray.models.tokenizer import load_tokenizer, train_bpe, wrap_bpe
from rlgaf_ray.objectives.discriminator import LOSSES
from rlgaf_ray.training.architectures import DISCRIMINATORS
from rlgaf_ray.training.neural_discriminator import NeuralDiscriminator
from rlgaf_ray.types import Demonstration, Rollout

ASKED = [
    "discriminator.architecture=generative",
    "discriminator.question=' real?'",
    "discriminator.learning_rate=3e-3",
    "generator.reinforce.credit=sequence",
    "learner.precision=float32",
    "learner.micro_batch_size=4",
]
VOCABULARY = 300


def test_every_config_value_has_a_table_row() -> None:
    assert set(get_args(DiscriminatorLoss)) == LOSSES.keys() >= LOSS_TRAITS.keys()
    assert set(get_args(DiscriminatorArchitecture)) == DISCRIMINATORS.keys() == ARCHITECTURE_TRAITS.keys()


@pytest.fixture(scope="module")
def sft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with its tokenizer."""
    path = tmp_path_factory.mktemp("sft")
    wrap_bpe(train_bpe(["is it real? yes or no"] * 20, VOCABULARY)).save_pretrained(path)
    build_tiny_gpt2(vocab_size=VOCABULARY, end_of_text_id=0, seed=3).save_pretrained(path)
    return path


def asked(*overrides: str) -> Config:
    return load_config(None, [*ASKED, *overrides])


@pytest.fixture(scope="module")
def folder(sft: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A discriminator folder as written by the warm-up."""
    path = tmp_path_factory.mktemp("critic")
    new = DISCRIMINATORS["generative"].new
    options = {"vocab_size": VOCABULARY, "pad_token_id": 0, "seed": 0, "device": torch.device("cpu")}
    new(str(sft), asked(), **options).export(path)  # type: ignore[arg-type]
    return path


def answers(token: int, seed: int) -> list[Rollout]:
    """Responses of one to six random tokens that include this token."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(12):
        response = generator.integers(100, VOCABULARY, int(generator.integers(1, 7))).astype(np.int32)
        response[generator.integers(len(response))] = token
        prompt = np.array([3, 4], np.int32)
        rows.append(Rollout(0, prompt, response, np.zeros(len(response), np.float32), "stop", 0))
    return rows


def demonstrations(seed: int) -> list[Demonstration]:
    return [Demonstration(item.prompt_ids, item.response_ids) for item in answers(50, seed)]


def scores(discriminator: NeuralDiscriminator, items: list[Rollout] | list[Demonstration]) -> np.ndarray:
    return np.array([discriminator.logits([item]).item() for item in items])


@pytest.mark.parametrize(
    "more",
    [[], ["model.lora.rank=4", "generator.average_decay=0", "discriminator.learning_rate=1e-2"]],
    ids=["all", "lora"],
)
def test_the_critic_learns_to_separate_two_types_of_responses(folder: Path, more: list[str], tmp_path: Path) -> None:
    config = asked(*more)
    critic = NeuralDiscriminator(folder, config, pad_token_id=0)
    start = {name: value.clone() for name, value in critic.model.network.state_dict().items()}
    for seed in range(25):
        metrics = critic.update(demonstrations(seed), answers(51, seed + 100))
    assert metrics["discriminator/loss"] < 0.3
    real, fake = demonstrations(999), answers(51, 998)
    assert (scores(critic, real)[:, None] > scores(critic, fake)).mean() > 0.95
    state = critic.model.network.state_dict()
    changed = {name for name, value in start.items() if not torch.equal(value, state[name])}
    assert not any("wte" in name or ".h.0." in name or ".h.1." in name for name in changed if "lora" not in name)
    assert any(".h.3." in name for name in changed)

    critic.save(tmp_path)
    again = NeuralDiscriminator(folder, config, pad_token_id=0)
    again.load(tmp_path, version=critic.version)
    assert np.array_equal(scores(again, real), scores(critic, real))
    following = [each.update(demonstrations(30), answers(51, 130)) for each in (critic, again)]
    assert following[0] == following[1]


def test_a_question_beyond_the_models_positions_raises(sft: Path) -> None:
    check, tokenizer = DISCRIMINATORS["generative"].check, load_tokenizer(str(sft))
    config = asked(f"model.generator={sft}")
    limit = 256 - len(tokenizer.encode(" real?")) - 1
    check(config, tokenizer, limit)
    with pytest.raises(UserError, match=r"takes at most 256 tokens, but prompt, response, .* have 257: shorten them"):
        check(config, tokenizer, limit + 1)
