"""Discriminator stabilisers against known numbers; none of them affects scoring."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from rlgaf_ray.config import load_config
from rlgaf_ray.data.lengths import View
from rlgaf_ray.errors import UserError
from rlgaf_ray.models.generator import blocks_of
from rlgaf_ray.training.discriminator import with_scores
from rlgaf_ray.training.neural_discriminator import NeuralDiscriminator
from rlgaf_ray.training.regularization import freeze_lower_layers
from rlgaf_ray.types import Demonstration, Rollout

VOCABULARY = 64


def logits(discriminator: NeuralDiscriminator) -> list[float]:
    return [item.score for item in discriminator.score(FAKE)]


@pytest.fixture
def build(folder: Path):
    def make(*overrides: str) -> NeuralDiscriminator:
        alone = ["learner.precision=float32", "discriminator.dropout=0", "discriminator.frozen_layers=0", *overrides]
        return NeuralDiscriminator(folder, load_config(None, alone), pad_token_id=0)

    return make


def responses(count: int, seed: int, *, low: int = 1, high: int = VOCABULARY, version: int = 0) -> list[Rollout]:
    generator = np.random.default_rng(seed)
    prompt = np.array([3, 4], np.int32)
    lengths = [2 + index % 4 for index in range(count)]
    return [
        Rollout(0, prompt, generator.integers(low, high, n).astype(np.int32), np.zeros(n, np.float32), "stop", version)
        for n in lengths
    ]


def demonstrations(count: int, seed: int) -> list[Demonstration]:
    return [Demonstration(item.prompt_ids, item.response_ids) for item in responses(count, seed)]


REAL, FAKE, CONTRAST = demonstrations(8, seed=1), responses(8, seed=2), demonstrations(8, seed=3)


def state_of(discriminator: NeuralDiscriminator) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in discriminator.model.network.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_input_embeddings_give_the_same_logits_as_token_ids(build) -> None:
    discriminator = build()
    sequences = discriminator.collate(FAKE)
    torch.testing.assert_close(
        discriminator.model.logits_of(sequences, discriminator.model.embed(sequences)), discriminator.model(sequences)
    )


def test_frozen_layers_are_fixed_and_the_others_train(build, tmp_path: Path) -> None:
    discriminator = build("discriminator.frozen_layers=2", "discriminator.weight_decay=0.1")
    before = state_of(discriminator)
    discriminator.update(REAL, FAKE, CONTRAST)
    moved = {name for name, value in state_of(discriminator).items() if not torch.equal(before[name], value)}
    frozen = ("transformer.wte", "transformer.wpe", "transformer.h.0.", "transformer.h.1.")
    assert moved and not [name for name in moved if name.startswith(frozen)]
    assert {name for name in before if not name.startswith(frozen)} == moved
    discriminator.save(tmp_path)
    again = build("discriminator.frozen_layers=2", "discriminator.weight_decay=0.1")
    again.load(tmp_path, version=1)
    for one in (discriminator, again):
        one.update(REAL, FAKE, CONTRAST)
    assert equal(state_of(discriminator), state_of(again))


def test_frozen_layers_keep_no_activations_for_backward(build) -> None:
    discriminator = build("discriminator.frozen_layers=2")
    kept: list[bool] = []
    for block in blocks_of(discriminator.model.network):
        block.register_forward_pre_hook(lambda block, inputs: kept.append(inputs[0].requires_grad))
    discriminator.update(REAL, FAKE)
    assert kept == [False, False, False, True]  # inputs of each block


@pytest.mark.parametrize("loss", ["binary_cross_entropy", "bradley_terry"])
@pytest.mark.parametrize("budget", ["learner.micro_batch_size=3", "learner.micro_batch_tokens=14"])
def test_grouping_by_length_does_not_change_the_gradient(build, loss: str, budget: str) -> None:
    """Compares gradients, not weights: Adam's first step normalises each gradient, rounding errors included."""

    def of_update(*words: str):
        discriminator = build(f"discriminator.loss={loss}", *words)
        metrics = discriminator._accumulate_gradients(REAL, FAKE, CONTRAST)
        return metrics, torch.cat([weight.grad.flatten() for weight in discriminator.model.parameters()])

    (expected, whole), (found, parts) = of_update(), of_update(budget)
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert float(torch.dist(parts, whole) / whole.norm()) < 1e-5


def test_an_update_has_little_padding(build) -> None:
    """Six responses each of 2, 3, 4 and 5 tokens, prompts of 2: one length per pass instead of padding all to 5."""
    discriminator = build("learner.micro_batch_size=6")
    read: list[tuple[int, ...]] = []
    discriminator.model.network.base_model.register_forward_pre_hook(
        lambda network, arguments, words: read.append(tuple(words["input_ids"].shape)), with_kwargs=True
    )
    discriminator.update(REAL, FAKE, CONTRAST)
    assert read == [(6, 7), (6, 6), (6, 5), (6, 4)]


def test_too_many_frozen_layers_raise(build) -> None:
    build("discriminator.frozen_layers=4")
    with pytest.raises(UserError, match=r"discriminator\.frozen_layers=5, but the model has 4: set at most 4"):
        build("discriminator.frozen_layers=5")


@pytest.mark.parametrize(("total", "frozen"), [(0, 0), (1, 0), (2, 1), (5, 4), (12, 9)])
def test_by_default_four_fifths_of_the_blocks_are_frozen(total: int, frozen: int) -> None:
    assert load_config(None, []).discriminator.num_frozen(total) == frozen


def test_the_blocks_of_another_architecture_are_found() -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = LlamaConfig.from_dict({"vocab_size": 20, "num_labels": 1, **sizes})
    network = LlamaForSequenceClassification(config)
    freeze_lower_layers(network, lambda total: total - 2)
    learning = {
        name.split(".")[2] for name, weight in network.named_parameters() if ".layers." in name and weight.requires_grad
    }
    assert learning == {"1", "2"}
    assert not network.model.embed_tokens.weight.requires_grad and network.score.weight.requires_grad


def test_replayed_rollouts_are_trained_on_and_checkpointed(build, tmp_path: Path) -> None:
    settings = ["discriminator.replay_share=0.5", "discriminator.replay_size=12"]
    discriminator, plain = build(*settings), build()
    for version in range(3):
        fake = responses(8, seed=10 + version, version=version)
        share = discriminator.update(REAL, fake, CONTRAST)["discriminator/replayed_share"]
        assert share == (0.5 if version else 0.0)
        assert "discriminator/replayed_share" not in plain.update(REAL, fake, CONTRAST)
        assert equal(state_of(discriminator), state_of(plain)) == (version == 0)
    discriminator.save(tmp_path)
    again = build(*settings)
    again.load(tmp_path, version=3)
    for one in (discriminator, again):
        one.update(REAL, responses(8, seed=20, version=3), CONTRAST)
    assert equal(state_of(discriminator), state_of(again))


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("matched", ["false", "true"])
def test_scores_do_not_depend_on_the_rest_of_the_batch(build, matched: str, pooling: str) -> None:
    """Eight sequences, in passes of three."""
    overrides = ["learner.micro_batch_size=1", f"discriminator.match_lengths={matched}"]
    discriminator = build(*overrides, f"discriminator.pooling={pooling}", "generator.reinforce.credit=sequence")
    fake = responses(5, 1)
    real = [Demonstration(np.array([5], np.int32), np.array([*row, 0], np.int32)) for row in ([8], [9, 7, 6], [3, 2])]
    scored, found = with_scores(fake, real, *discriminator.token_scores([*fake, *real]))
    assert all(item.rollout is rollout for item, rollout in zip(scored, fake, strict=True))
    read = View([0]).read(real) if matched == "true" else real
    with torch.no_grad():
        expected = discriminator.logits([*fake, *read]).tolist()
    np.testing.assert_allclose([*(item.score for item in scored), *found], expected, atol=1e-5)
    assert len(set(found)) == 3


def test_matched_lengths_hide_length_differences(build) -> None:
    """Real and fake repeat the same token; they differ only in length and in the real ones' end of text."""
    prompt = np.array([3, 4], np.int32)
    real = [Demonstration(prompt, np.array([7] * (1 + row % 3) + [0], np.int32)) for row in range(8)]
    fake = [
        Rollout(0, prompt, np.full(5 + row % 3, 7, np.int32), np.zeros(5 + row % 3, np.float32), "length", 0)
        for row in range(8)
    ]
    accuracies = {}
    for matched in ("false", "true"):
        discriminator = build("discriminator.learning_rate=1e-3", f"discriminator.match_lengths={matched}")
        for _ in range(10):
            metrics = discriminator.update(real, fake)
        accuracies[matched] = metrics["discriminator/accuracy"]
        ended = Rollout(0, prompt, np.append(fake[0].response_ids, 0), np.zeros(6, np.float32), "stop", 0)
        first, *_, last = discriminator.score([*fake, ended])
        assert last.token_scores is not None and len(last.token_scores) == len(ended.response_ids)
        assert (first.score == last.score) == (matched == "true")  # the end of text is not read
    assert accuracies["false"] > 0.8 and accuracies["true"] == 0.5
    assert metrics["discriminator/response_tokens"] == pytest.approx((3 * 1 + 3 * 2 + 2 * 3) / 8)
