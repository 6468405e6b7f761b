"""What steadies the discriminator, each against numbers; and that none of it is seen by a score."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from rlgaf_ray.config import load_config
from rlgaf_ray.data.lengths import View
from rlgaf_ray.errors import UserError
from rlgaf_ray.models.generator import blocks_of
from rlgaf_ray.models.scalar import ScalarModel
from rlgaf_ray.training.discriminator import with_scores
from rlgaf_ray.training.neural_discriminator import NeuralDiscriminator
from rlgaf_ray.training.regularization import bound_spectral_norm, freeze_lower_layers
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


def test_embeddings_given_as_they_are_change_nothing(build) -> None:
    discriminator = build()
    sequences = discriminator.collate(FAKE)
    torch.testing.assert_close(
        discriminator.model.logits_of(sequences, discriminator.model.embed(sequences)), discriminator.model(sequences)
    )


def test_instance_noise_is_of_training_alone_seeded_and_fades(build) -> None:
    noisy, again, plain = build("discriminator.instance_noise=0.5"), build("discriminator.instance_noise=0.5"), build()
    assert logits(noisy) == logits(plain)
    for number, one in enumerate((noisy, again, plain)):
        torch.manual_seed(number)  # the process's own random state has no part in it, and is left alone
        before = torch.get_rng_state()
        metrics = one.update(REAL, FAKE, CONTRAST)
        assert torch.equal(torch.get_rng_state(), before)
        if one is not plain:
            assert metrics["discriminator/instance_noise"] == 0.5
    assert equal(state_of(noisy), state_of(again)) and not equal(state_of(noisy), state_of(plain))

    noisy.version = 60
    assert noisy.update(REAL, FAKE, CONTRAST)["discriminator/instance_noise"] == 0.0


def slope(discriminator: NeuralDiscriminator, items: list) -> float:
    """Mean squared norm of the logit's gradient in the response's embeddings, one response at a time."""
    scalar = discriminator.model
    assert isinstance(scalar, ScalarModel)
    norms = []
    for item in items:
        sequences = discriminator.collate([item])
        points = scalar.embed(sequences).detach().requires_grad_()
        scalar.logits_of(sequences, points).backward()
        assert points.grad is not None
        norms.append(float(points.grad[sequences.response_mask].square().sum()))
    discriminator.model.zero_grad()
    return float(np.mean(norms))


def test_r1_is_measured_at_real_responses_and_flattens_them(build) -> None:
    learning = ["discriminator.learning_rate=1e-3"]
    penalised = build(*learning, "discriminator.gradient_penalty=r1", "discriminator.gradient_penalty_weight=30")
    plain = build(*learning)
    metrics = penalised.update(REAL, FAKE, CONTRAST)
    assert metrics["discriminator/gradient_penalty"] == pytest.approx(slope(build(), REAL) / 2, rel=1e-4)
    plain.update(REAL, FAKE, CONTRAST)
    for _ in range(5):
        penalised.update(REAL, FAKE, CONTRAST)
        plain.update(REAL, FAKE, CONTRAST)
    assert slope(penalised, REAL) < 0.5 * slope(plain, REAL)


def test_the_interpolated_penalty_between_a_thing_and_itself_is_that_at_the_thing(build) -> None:
    discriminator = build("discriminator.gradient_penalty=interpolated")
    metrics = discriminator.update(REAL[:1], REAL[:1])
    norm = slope(build(), REAL[:1]) ** 0.5
    assert metrics["discriminator/gradient_penalty"] == pytest.approx((norm - 1) ** 2, rel=1e-4)
    # other prompts, other lengths, unequal counts
    long = Demonstration(np.array([5], np.int32), np.arange(1, 10, dtype=np.int32))
    assert np.isfinite(discriminator.update([*REAL, long], FAKE, CONTRAST)["discriminator/gradient_penalty"])


@pytest.mark.parametrize("kind", ["r1", "interpolated"])
def test_micro_batches_do_not_change_what_is_penalised(build, kind: str) -> None:
    found = []
    for size in (64, 3):
        discriminator = build(f"discriminator.gradient_penalty={kind}", f"learner.micro_batch_size={size}")
        found.append(discriminator.update(REAL[:6], FAKE[:6], CONTRAST[:6])["discriminator/gradient_penalty"])
    tolerance = 1e-5 if kind == "r1" else 0.2  # the mixtures' weights are drawn slice by slice
    assert found[0] == pytest.approx(found[1], rel=tolerance)


@pytest.mark.parametrize(
    ("rows", "largest"), [([[3.0, 4.0]], 5.0), ([[2.0, 0.0], [0.0, 0.5]], 2.0), ([[0.3, 0.4]], 0.5)]
)
def test_the_largest_singular_value_is_bounded(rows: list[list[float]], largest: float) -> None:
    layer = torch.nn.Linear(2, len(rows), bias=False)
    layer.weight.data = torch.tensor(rows)
    assert bound_spectral_norm(layer) == pytest.approx(largest)
    torch.testing.assert_close(layer.weight.data, torch.tensor(rows) / max(1.0, largest))
    assert torch.linalg.svdvals(layer.weight)[0] <= 1.0 + 1e-6


def test_a_bounded_head_stays_so_and_is_exported_plainly(build, tmp_path: Path) -> None:
    def head(discriminator: NeuralDiscriminator) -> torch.Tensor:
        return discriminator.model.network.score.weight.detach()

    discriminator = build("discriminator.spectral_norm=true", "discriminator.learning_rate=0.1")
    for _ in range(3):
        metrics = discriminator.update(REAL, FAKE, CONTRAST)
        assert metrics["discriminator/spectral_norm"] > 1.0  # the step goes beyond, each time
        assert float(head(discriminator).norm()) == pytest.approx(1.0, abs=1e-6)
    discriminator.save(tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(plain.score.weight, head(discriminator))
    assert not [name for name in plain.state_dict() if "parametrizations" in name]

    again = build("discriminator.spectral_norm=true", "discriminator.learning_rate=0.1")
    again.load(tmp_path, version=3)
    assert logits(again) == logits(discriminator)
    for one in (discriminator, again):
        one.update(REAL, FAKE, CONTRAST)
    assert equal(state_of(discriminator), state_of(again))


def test_a_steep_head_is_bounded_before_it_scores(build, tmp_path: Path) -> None:
    steep = build()
    steep.model.network.score.weight.data.mul_(1e4)
    steep.model.export(tmp_path)
    settings = load_config(None, ["learner.precision=float32", "discriminator.spectral_norm=true"])
    bounded = NeuralDiscriminator(tmp_path, settings, pad_token_id=0)
    norm = float(steep.model.network.score.weight.detach().norm())
    assert logits(bounded) == pytest.approx([score / norm for score in logits(steep)], rel=1e-4)


def test_head_dropout_is_of_training_alone_and_seeded(build) -> None:
    first, second, plain = build("discriminator.head_dropout=0.5"), build("discriminator.head_dropout=0.5"), build()
    assert logits(first) == logits(plain)
    for one in (first, second, plain):
        one.update(REAL, FAKE, CONTRAST)
    assert equal(state_of(first), state_of(second)) and not equal(state_of(first), state_of(plain))
    assert logits(first) == logits(first)


def test_head_dropout_keeps_the_mean(build) -> None:
    model = build("discriminator.head_dropout=0.25").model.train()
    torch.manual_seed(0)
    model.network.score.weight.data.fill_(1.0)
    scores = model.head(torch.ones(100, 20, 192)).detach() / 192  # entries are 0 or 1 / 0.75
    deviation = (0.25 / 0.75 / 192) ** 0.5
    assert float(scores.mean()) == pytest.approx(1.0, abs=4 * deviation / 2000**0.5)
    assert float(scores.std()) == pytest.approx(deviation, rel=4 / (2 * 2000) ** 0.5)


def test_frozen_layers_stay_and_the_others_learn(build, tmp_path: Path) -> None:
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


def test_below_the_frozen_layers_no_gradient_is_kept(build) -> None:
    discriminator = build("discriminator.frozen_layers=2", "discriminator.instance_noise=0.1")
    kept: list[bool] = []
    for block in blocks_of(discriminator.model.network):
        block.register_forward_pre_hook(lambda block, inputs: kept.append(inputs[0].requires_grad))
    discriminator.update(REAL, FAKE)
    assert kept == [False, False, False, True]  # what each block reads


@pytest.mark.parametrize("loss", ["binary_cross_entropy", "bradley_terry"])
@pytest.mark.parametrize("budget", ["learner.micro_batch_size=3", "learner.micro_batch_tokens=14"])
def test_micro_batches_of_like_length_do_not_change_the_gradient(build, loss: str, budget: str) -> None:
    """Not the weights: the first step of Adam divides each gradient by its size, that of rounding too."""

    def of_update(*words: str):
        discriminator = build(f"discriminator.loss={loss}", *words)
        metrics = discriminator._accumulate_gradients(REAL, FAKE, CONTRAST)
        return metrics, torch.cat([weight.grad.flatten() for weight in discriminator.model.parameters()])

    (expected, whole), (found, parts) = of_update(), of_update(budget)
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert float(torch.dist(parts, whole) / whole.norm()) < 1e-5


def test_an_update_reads_little_padding(build) -> None:
    """Responses of 2, 3, 4 and 5 tokens behind prompts of 2, six of each: one length a pass, where 5 would pad all."""
    discriminator = build("learner.micro_batch_size=6")
    read: list[tuple[int, ...]] = []
    discriminator.model.network.base_model.register_forward_pre_hook(
        lambda network, arguments, words: read.append(tuple(words["input_ids"].shape)), with_kwargs=True
    )
    discriminator.update(REAL, FAKE, CONTRAST)
    assert read == [(6, 7), (6, 6), (6, 5), (6, 4)]


def test_more_frozen_layers_than_there_are(build) -> None:
    build("discriminator.frozen_layers=4")
    with pytest.raises(UserError, match=r"discriminator\.frozen_layers=5, but the model has 4: freeze at most"):
        build("discriminator.frozen_layers=5")


def test_the_blocks_of_another_architecture_are_found() -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = LlamaConfig.from_dict({"vocab_size": 20, "num_labels": 1, **sizes})
    network = LlamaForSequenceClassification(config)
    freeze_lower_layers(network, 1)
    learning = {
        name.split(".")[2] for name, weight in network.named_parameters() if ".layers." in name and weight.requires_grad
    }
    assert learning == {"1", "2"}
    assert not network.model.embed_tokens.weight.requires_grad and network.score.weight.requires_grad


def test_past_rollouts_are_learned_from_again_and_kept_in_the_checkpoint(build, tmp_path: Path) -> None:
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
def test_demonstrations_are_scored_with_rollouts_as_by_themselves(build, matched: str, pooling: str) -> None:
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


def test_matched_lengths_leave_a_difference_of_length_unlearned(build) -> None:
    """Answers of one token repeated, real ones short and ended, fake ones long: nothing else tells them apart."""
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
