from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlgaf_ray.config import Config, load_config
from rlgaf_ray.config.section import LearningRateSchedule
from rlgaf_ray.data.collate import collate_sequences, demonstration_blocks
from rlgaf_ray.errors import UserError
from rlgaf_ray.models.cnn import build_cnn
from rlgaf_ray.models.generator import build_tiny_gpt2
from rlgaf_ray.models.lstm import build_lstm
from rlgaf_ray.training.learner import Learner
from rlgaf_ray.training.neural_discriminator import NeuralDiscriminator
from rlgaf_ray.training.optimizer import build_optimizer, load_optimizer, save_optimizer, schedule_factor
from rlgaf_ray.training.reinforce import Reinforce
from rlgaf_ray.training.warmup import WarmupProgress, Worker, warm_up_generator
from rlgaf_ray.types import Demonstration, Rollout, ScoredRollout, SequenceBatch, TextBlocks, TrainBatch

VOCABULARY = 64


def config(*overrides: str) -> Config:
    small = ["rollout.batch_size=8", "rollout.samples_per_prompt=4", "learner.precision=float32"]
    tiny = ["discriminator.frozen_layers=2", "generator.learning_rate=1e-4"]  # out of four blocks
    return load_config(None, [*small, *tiny, *overrides])


def rollouts(count: int = 8, seed: int = 0) -> list[Rollout]:
    generator = np.random.default_rng(seed)
    return [
        Rollout(
            prompt_id=index // 4,
            prompt_ids=np.array([3, 4], np.int32),
            response_ids=generator.integers(1, VOCABULARY, 2 + index % 4).astype(np.int32),
            behaviour_logprobs=np.full(2 + index % 4, -4.0, np.float32),
            finish_reason="length",
            policy_version=0,
        )
        for index in range(count)
    ]


def logits(items: list[ScoredRollout]) -> list[float]:
    return [item.score for item in items]


def scored(rewards: list[float]) -> list[ScoredRollout]:
    """Scored rollouts whose full score is on the last token."""
    return [
        ScoredRollout(rollout, reward, 0, reward, np.eye(len(rollout.response_ids), dtype=np.float32)[-1] * reward)
        for rollout, reward in zip(rollouts(), rewards, strict=True)
    ]


@pytest.mark.parametrize("algorithm", ["reinforce", "ppo"])
@pytest.mark.parametrize("average", ["token", "sequence"])
def test_micro_batches_do_not_change_the_update(folder: Path, algorithm: str, average: str) -> None:
    weights, losses = [], []
    for passes in (
        ["learner.micro_batch_size=8"],
        ["learner.micro_batch_size=3"],
        ["learner.micro_batch_tokens=12", "learner.logprob_chunk_tokens=5", "learner.activation_checkpointing=true"],
    ):
        settings = [f"generator.algorithm={algorithm}", f"generator.{algorithm}.loss_average={average}"]
        learner = Learner(
            folder, config(*settings, *passes, "generator.ppo.critic_warmup_iterations=0"), pad_token_id=0
        )
        metrics = learner.update(scored([1.0, 0.0, 0.5, 2.0, -1.0, 0.0, 0.3, 0.1]), iteration=0)
        weights.append(learner.weights(1).arrays["transformer.h.3.mlp.c_fc.weight"].copy())
        losses.append(metrics["generator/loss"])
    for other, loss in zip(weights[1:], losses[1:], strict=True):
        np.testing.assert_allclose(weights[0], other, atol=2e-6)
        assert loss == pytest.approx(losses[0], abs=1e-5)


def test_chunks_add_up_to_the_weights(folder: Path) -> None:
    learner = Learner(folder, config("weights.bucket_mib=1"), pad_token_id=0)
    whole = learner.weights(3)
    parts = [learner.weights_part(3, part) for part in range(learner.num_parts())]
    assert len(parts) > 2
    names: list[str] = []
    for index, part in enumerate(parts):
        assert part is not None
        names += part.arrays
        assert (part.policy_version, part.part, part.is_last) == (3, index, index == len(parts) - 1)
        for name, array in part.arrays.items():
            assert array.ctypes.data == whole.arrays[name].ctypes.data  # a single process does not copy
    assert sorted(names) == sorted(whole.arrays)


def test_chunked_logprobs_need_a_plain_output_layer(tmp_path: Path) -> None:
    build_lstm(vocab_size=VOCABULARY, end_of_text_id=0, seed=1).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="those of LstmForCausalLM are not: set it to null"):
        Learner(tmp_path, config("learner.logprob_chunk_tokens=8"), pad_token_id=0)
    with pytest.raises(UserError, match="LstmForCausalLM has none: set it to false"):
        Learner(tmp_path, config("learner.activation_checkpointing=true"), pad_token_id=0)


def test_a_rewarded_response_gains_likelihood(folder: Path) -> None:
    overrides = ["generator.learning_rate=1e-3", "generator.reinforce.kl.coefficient=0"]
    learner = Learner(folder, config(*overrides), pad_token_id=0)
    items = scored([1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    before = [learner.mean_nll([item.rollout], model="policy") for item in items]
    for iteration in range(5):
        learner.update(items, iteration=iteration)
    after = [learner.mean_nll([item.rollout], model="policy") for item in items]
    assert after[0] < before[0] and after[7] < before[7]
    assert np.mean(after[1:4]) > np.mean(before[1:4])
    assert [learner.mean_nll([item.rollout], model="reference") for item in items] == before


@pytest.mark.parametrize("algorithm", ["reinforce", "ppo"])
def test_non_finite_rewards_leave_the_weights_unchanged(folder: Path, algorithm: str) -> None:
    learner = Learner(folder, config(f"generator.algorithm={algorithm}"), pad_token_id=0)
    before = {name: value.copy() for name, value in learner.weights(0).arrays.items()}
    metrics = learner.update(scored([float("nan")] + [0.0] * 7), iteration=0)
    assert metrics["generator/non_finite"] == metrics["generator/skipped_steps"] == 1.0
    assert all(np.array_equal(before[name], value) for name, value in learner.weights(0).arrays.items())


@pytest.mark.parametrize(("algorithm", "steps"), [("reinforce", 1), ("ppo", 6)])
def test_steps_with_non_finite_gradients_are_skipped_and_counted(folder: Path, algorithm: str, steps: int) -> None:
    overrides = ["generator.ppo.epochs=3", "generator.ppo.minibatches=2", "generator.ppo.critic_warmup_iterations=0"]
    learner = Learner(folder, config(f"generator.algorithm={algorithm}", *overrides), pad_token_id=0)
    rewards = scored([1.0, 0, 0, 0, 0, 0, 0, 1.0])
    assert learner.update(rewards, iteration=0)["generator/skipped_steps"] == 0
    before = {name: value.copy() for name, value in learner.weights(0).arrays.items()}
    moments = copy.deepcopy(moments_of(learner))
    model: Any = learner.policy.model
    spoil = model.transformer.wpe.weight.register_hook(lambda gradient: gradient * float("nan"))
    metrics = learner.update(rewards, iteration=1)
    assert metrics["generator/skipped_steps"] == steps and np.isnan(metrics["generator/grad_norm"])
    assert all(np.array_equal(before[name], value) for name, value in learner.weights(0).arrays.items())
    for now, then in zip(moments_of(learner), moments, strict=True):
        assert all(torch.equal(value, then[name]) for name, value in now.items())
    spoil.remove()
    assert learner.update(rewards, iteration=2)["generator/skipped_steps"] == 0
    assert not np.array_equal(before["transformer.wpe.weight"], learner.weights(0).arrays["transformer.wpe.weight"])


def moments_of(learner: Learner) -> list[dict[str, torch.Tensor]]:
    return list(learner.policy.optimizer.state.values())


def test_a_discriminator_step_with_a_non_finite_gradient_is_skipped_and_counted(folder: Path) -> None:
    discriminator = NeuralDiscriminator(folder, config("discriminator.frozen_layers=0"), pad_token_id=0)
    real = [Demonstration(item.prompt_ids, item.response_ids) for item in rollouts(seed=1)]
    assert discriminator.update(real, rollouts())["discriminator/skipped_steps"] == 0
    before = {name: value.clone() for name, value in discriminator.model.state_dict().items()}
    spoil = next(discriminator.model.parameters()).register_hook(lambda gradient: gradient * float("nan"))
    assert discriminator.update(real, rollouts())["discriminator/skipped_steps"] == 1
    assert all(torch.equal(before[name], value) for name, value in discriminator.model.state_dict().items())
    spoil.remove()
    assert discriminator.update(real, rollouts())["discriminator/skipped_steps"] == 0


def test_only_the_critic_trains_at_first(folder: Path) -> None:
    learner = Learner(
        folder, config("generator.algorithm=ppo", "generator.ppo.critic_warmup_iterations=1"), pad_token_id=0
    )
    before = learner.weights(0).arrays["transformer.wpe.weight"].copy()
    first = learner.update(scored([1.0, 0, 0, 0, 0, 0, 0, 1.0]), iteration=0)
    assert np.array_equal(before, learner.weights(0).arrays["transformer.wpe.weight"])
    assert first["generator/critic_grad_norm"] > 0
    learner.update(scored([1.0, 0, 0, 0, 0, 0, 0, 1.0]), iteration=1)
    assert not np.array_equal(before, learner.weights(0).arrays["transformer.wpe.weight"])


def test_the_discriminator_learns_and_its_scores_change(folder: Path) -> None:
    settings = config("discriminator.learning_rate=1e-3", "discriminator.contrast_weight=1.3")
    discriminator = NeuralDiscriminator(folder, settings, pad_token_id=0)
    real = [Demonstration(np.array([3, 4], np.int32), np.array([5, 6, 7], np.int32))] * 8
    fake, contrast = rollouts(), [Demonstration(np.array([3, 4], np.int32), np.array([50, 51, 52], np.int32))] * 8
    before = discriminator.score(fake)
    assert {item.discriminator_version for item in before} == {0}
    losses = [discriminator.update(real, fake, contrast)["discriminator/loss"] for _ in range(20)]
    after = discriminator.score(fake)
    assert {item.discriminator_version for item in after} == {20}
    assert losses[-1] < 0.5 * losses[0]
    assert np.mean(logits(after)) < np.mean(logits(before))


def test_schedules() -> None:
    def factors(schedule: LearningRateSchedule, warmup: int = 0) -> list[float]:
        return [schedule_factor(s, num_steps=4, num_warmup_steps=warmup, schedule=schedule) for s in range(5)]

    assert factors("constant") == [1, 1, 1, 1, 1]
    assert factors("linear") == [1, 0.75, 0.5, 0.25, 0]
    assert factors("cosine") == pytest.approx([1, 0.853553, 0.5, 0.146447, 0], abs=1e-6)
    assert factors("linear", warmup=2) == [0.5, 1, 1, 0.5, 0]


def test_optimizer_state_round_trips_without_pickle(tmp_path: Path) -> None:
    def network() -> torch.nn.Linear:
        torch.manual_seed(0)
        return torch.nn.Linear(3, 2)

    def train(module: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for step in range(steps):
            module(torch.full((1, 3), float(step))).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    modules = [network(), network()]
    optimizers = [
        build_optimizer(m.parameters(), learning_rate=0.1, betas=(0.9, 0.99), weight_decay=0.1) for m in modules
    ]
    for module, optimizer in zip(modules, optimizers, strict=True):
        train(module, optimizer, 3)
    save_optimizer(optimizers[0], tmp_path / "optimizer.safetensors")
    other = build_optimizer(network().parameters(), learning_rate=9.9, betas=(0.1, 0.1), weight_decay=0.5)
    fresh = build_optimizer(modules[1].parameters(), learning_rate=0.1, betas=(0.9, 0.99), weight_decay=0.1)
    for each in (other, fresh):
        load_optimizer(each, tmp_path / "optimizer.safetensors")
    group = other.param_groups[0]  # a resumed run may have other options
    assert (group["lr"], group["betas"], group["weight_decay"]) == (9.9, (0.1, 0.1), 0.5)
    train(modules[0], optimizers[0], 2)
    train(modules[1], fresh, 2)
    assert torch.equal(modules[0].weight, modules[1].weight)


def test_a_resumed_warmup_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    token_ids = generator.integers(0, VOCABULARY, (40, 16)).astype(np.int32)
    ends = generator.integers(4, 16, (40, 1))  # the rest is padding
    blocks = TextBlocks(token_ids, (np.arange(16) > 0) & (np.arange(16) < ends))
    settings = config("warmup.generator.steps=12", "warmup.generator.batch_size=4").warmup.generator
    saved = tmp_path / "checkpoint"
    saved.mkdir()
    seen: list[WarmupProgress] = []

    def run(resume: bool) -> torch.Tensor:
        model = build_tiny_gpt2(vocab_size=VOCABULARY, end_of_text_id=0, seed=1)
        worker = Worker(
            report=seen.append,
            checkpoint=lambda write: None if resume else write(saved),
            resume_from=saved if resume else None,
        )
        warm_up_generator(model, blocks, settings, precision="float32", seed=0, checkpoint_every=7, worker=worker)
        return model.transformer.wte.weight.detach()

    assert torch.equal(run(resume=False), run(resume=True))
    assert seen[0].step == 10 and seen[1].step == 12 and seen[-1].step == 12


def test_the_warmup_ignores_padding() -> None:
    settings = config("warmup.generator.steps=3", "warmup.generator.batch_size=4").warmup.generator
    token_ids = np.random.default_rng(0).integers(0, VOCABULARY, (4, 16)).astype(np.int32)
    learned = np.zeros((4, 16), bool)
    learned[:, 5:9] = True

    def run(padding: int) -> torch.Tensor:
        model = build_tiny_gpt2(vocab_size=VOCABULARY, end_of_text_id=0, seed=1)
        padded = token_ids.copy()
        padded[:, 9:] = padding
        warm_up_generator(
            model,
            TextBlocks(padded, learned),
            settings,
            precision="float32",
            seed=0,
            checkpoint_every=7,
            worker=Worker(),
        )
        return model.transformer.wte.weight.detach()

    assert torch.equal(run(0), run(1))


def test_the_discriminator_takes_seqgans_cnn(tmp_path: Path) -> None:
    """Loads from a folder, trains, scores without dropout, and reloads from its own export."""
    build_cnn(vocab_size=VOCABULARY, pad_token_id=0, seed=1, window_sizes=(1, 2), num_filters=(8, 8)).export(tmp_path)
    cnn = ["discriminator={architecture: cnn, dropout: 0, frozen_layers: 0}", "generator.reinforce.credit=sequence"]
    discriminator = NeuralDiscriminator(tmp_path, config(*cnn, "discriminator.learning_rate=1e-2"), pad_token_id=0)
    real = [Demonstration(np.array([3, 4], np.int32), np.array([9, 9, 9], np.int32)) for _ in range(8)]
    losses = [discriminator.update(real, rollouts())["discriminator/loss"] for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]
    scores = logits(discriminator.score(rollouts()))
    assert scores == logits(discriminator.score(rollouts()))
    assert max(scores) < discriminator.logits(real[:1]).item()
    discriminator.save(tmp_path / "saved")
    again = NeuralDiscriminator(tmp_path, config(*cnn), pad_token_id=0)
    assert logits(again.score(rollouts())) != scores
    again.load(tmp_path / "saved", version=30)
    assert logits(again.score(rollouts())) == scores
    assert again.score(rollouts())[0].discriminator_version == 30


def test_the_learner_trains_an_lstm(tmp_path: Path) -> None:
    """Rewarded responses gain likelihood through the same update as for any other model."""
    build_lstm(vocab_size=VOCABULARY, end_of_text_id=0, seed=1).save_pretrained(tmp_path)
    learner = Learner(tmp_path, config("generator.learning_rate=1e-2"), pad_token_id=0)
    rewarded = [1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    sequences = collate_sequences(rollouts(), 0)

    def likelihoods() -> torch.Tensor:
        with torch.no_grad():
            return learner.policy.logprobs(sequences).sum(1)

    before = likelihoods()
    for iteration in range(3):
        learner.update(scored(rewarded), iteration=iteration)
    gains = likelihoods() - before
    assert gains[[0, 5]].min() > gains[[1, 2, 3, 4, 6, 7]].max()


def test_the_rollout_policy_follows_the_policy_and_is_restored(tmp_path: Path) -> None:
    build_tiny_gpt2(vocab_size=VOCABULARY, end_of_text_id=0, seed=1).save_pretrained(tmp_path / "model")
    settings = config("generator.algorithm=seqgan", "generator.seqgan.rollout_policy_rate=0.75")
    learner = Learner(tmp_path / "model", settings, pad_token_id=0)
    name = "transformer.h.0.mlp.c_fc.weight"
    start = learner.weights(0).arrays[name].copy()
    learner.update(scored([1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0]), iteration=0)
    moved, averaged = learner.weights(1).arrays[name], learner.weights(1, network="rollout_policy").arrays[name]
    assert np.abs(moved - start).max() > 0
    np.testing.assert_allclose(averaged, 0.75 * start + 0.25 * moved, atol=1e-7)
    learner.save(tmp_path / "saved")
    again = Learner(tmp_path / "model", settings, pad_token_id=0)
    again.load(tmp_path / "saved")
    np.testing.assert_array_equal(again.weights(1, network="rollout_policy").arrays[name], averaged)
    np.testing.assert_array_equal(again.weights(1).arrays[name], moved)


@pytest.mark.parametrize("algorithm", ["reinforce", "ppo", "gumbel"])
def test_a_changed_kl_coefficient_replaces_a_saved_one(folder: Path, tmp_path: Path, algorithm: str) -> None:
    """A coefficient that was adapted, or raised by a rollback, stays if the configured one is the same."""

    def learner(coefficient: float) -> Learner:
        key = f"generator.{algorithm}.kl.coefficient={coefficient}"
        return Learner(folder, config(f"generator.algorithm={algorithm}", key), pad_token_id=0)

    saved = learner(0.2)
    saved.adjust(learning_rate_factor=1.0, kl_coefficient=0.4)
    saved.save(tmp_path)
    for configured, expected in ((0.2, 0.4), (0.3, 0.3)):
        resumed = learner(configured)
        resumed.load(tmp_path)
        assert resumed.algorithm.kl.coefficient == expected


def test_exact_kl_covers_the_vocabulary_and_constrains_the_policy(folder: Path) -> None:
    """With the same rewards in every update, a large KL loss keeps the policy near its start."""

    def kl(coefficient: float) -> list[float]:
        learner = Learner(
            folder,
            config(
                f"generator.reinforce.kl.coefficient={coefficient}",
                "generator.learning_rate=1e-3",
                "learner.micro_batch_size=3",
            ),
            pad_token_id=0,
        )
        rewards = [1.0, 0, 0, 0, 0, 0, 0, 1.0]
        return [learner.update(scored(rewards), iteration=0)["generator/kl_exact"] for _ in range(8)]

    free, held = kl(0.0), kl(100.0)
    assert free[0] == held[0] == pytest.approx(0.0, abs=1e-6)
    assert min(free) > -1e-6 and free[-1] > 5 * held[-1] > 0


def test_token_credit_subtracts_past_scores_from_the_return(folder: Path) -> None:
    """Two responses with token scores (3, 1) and (1, 1): returns 4, 2 become (4, 1) and (2, 1), each the other's
    baseline."""
    algorithm = Reinforce(
        config(
            "generator.reinforce.advantage_scale=none",
        ).generator.reinforce
    )
    mask = torch.tensor([[False, True, True]]).expand(2, -1)
    parts = torch.tensor([[0.0, 3.0, 1.0], [0.0, 1.0, 1.0]])
    batch = TrainBatch(
        SequenceBatch(torch.zeros_like(parts).long(), torch.ones_like(parts).long(), mask),
        torch.zeros_like(parts),
        scores=parts.sum(1),
        group_size=1,
        token_scores=parts,
    )
    found = algorithm.advantages(batch, batch.scores, torch.zeros_like(parts))
    assert found.tolist() == [[0.0, 2.0, 0.0], [0.0, -2.0, 0.0]]


@pytest.mark.parametrize("algorithm", ["reinforce", "ppo", "seqgan", "gumbel"])
def test_a_learner_can_be_adjusted_during_training(folder: Path, tmp_path: Path, algorithm: str) -> None:
    """The factor applies to the configured rate, not the last one; a learner without moments can be restored."""
    overrides = [f"generator.algorithm={algorithm}", "generator.learning_rate_schedule=constant"]
    settings = config(*overrides, "generator.ppo.critic_warmup_iterations=0", "task.response_tokens=4")
    learner = Learner(folder, settings, pad_token_id=0)
    copied = NeuralDiscriminator(folder, settings, pad_token_id=0).weights() if algorithm == "gumbel" else None
    if copied is not None:
        learner.load_discriminator(copied)
    items = scored([1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0])
    if algorithm == "seqgan":
        values = [np.zeros(len(item.rollout.response_ids), np.float32) for item in items]
        items = [replace(item, action_values=value) for item, value in zip(items, values, strict=True)]
    assert learner.update(items, iteration=0)["generator/learning_rate"] == 1e-4
    for factor in (0.25, 0.5):
        learner.adjust(learning_rate_factor=factor, kl_coefficient=0.3)
    metrics = learner.update(items, iteration=1)
    assert (metrics["generator/learning_rate"], metrics["generator/kl_coefficient"]) == (5e-5, 0.3)
    optimizers = [learner.policy.optimizer, *(each.optimizer for each in learner.algorithm.networks().values())]
    assert len(optimizers) == 1 + (algorithm == "ppo")
    assert all(optimizer.state for optimizer in optimizers)
    learner.adjust(learning_rate_factor=1.0, refresh=True)
    assert not any(optimizer.state for optimizer in optimizers)
    learner.save(tmp_path / "saved")
    again = Learner(folder, settings, pad_token_id=0)
    again.load(tmp_path / "saved")
    if copied is not None:
        again.load_discriminator(copied)
    ours, theirs = (one.update(items, iteration=2) for one in (learner, again))
    assert ours == theirs
    assert (ours["generator/learning_rate"], ours["generator/kl_coefficient"]) == (1e-4, 0.3)


def test_a_discriminator_can_be_adjusted_during_training(folder: Path) -> None:
    real = [Demonstration(np.array([3, 4], np.int32), np.array([5, 6, 7], np.int32))] * 8
    discriminator = NeuralDiscriminator(folder, config("discriminator.learning_rate=1e-3"), pad_token_id=0)
    discriminator.update(real, rollouts())
    for factor in (0.1, 0.5):
        discriminator.adjust(learning_rate_factor=factor, refresh=True)
    assert not discriminator.optimizer.state
    before = discriminator.model.network.score.weight.detach().clone()
    discriminator.update(real, rollouts())
    # Adam's first step without moments is the learning rate, whatever the gradient's size.
    step = (discriminator.model.network.score.weight.detach() - before).abs().max()
    assert step == pytest.approx(5e-4, rel=1e-3)


@pytest.mark.parametrize("passes", ["micro_batch_size=64", "micro_batch_size=1", "micro_batch_tokens=4"])
def test_the_demonstration_loss_is_added_to_the_reward_objective(folder: Path, passes: str) -> None:
    """With equal rewards and no KL, the step is a scaled maximum likelihood step on the demonstrations."""
    quiet = [f"learner.{passes}"]
    quiet += ["generator.reinforce.kl.coefficient=0", "generator.reinforce.demonstration_coefficient=0.5"]
    learner = Learner(folder, config(*quiet, "generator.max_grad_norm=1e9"), pad_token_id=0)
    demonstrations = [
        Demonstration(np.array([3], np.int32), np.array([5, 6, 7], np.int32)),
        Demonstration(np.array([3, 4], np.int32), np.array([9], np.int32)),
    ]
    text = demonstration_blocks(demonstrations)
    assert text.token_ids.tolist() == [[3, 5, 6, 7], [3, 4, 9, 0]]
    assert text.learned.tolist() == [[False, True, True, True], [False, False, True, False]]
    before = learner.mean_nll(demonstrations, model="policy")
    with torch.enable_grad():
        ids = torch.from_numpy(text.token_ids).long()
        logits = learner.policy.model(ids[:, :-1]).logits.transpose(1, 2)
        nll = torch.nn.functional.cross_entropy(logits, ids[:, 1:], reduction="none")
        (0.5 * nll[torch.from_numpy(text.learned[:, 1:])].mean()).backward()
    gradients = [each.grad for each in learner.policy.model.parameters() if each.grad is not None]
    expected = float(torch.nn.utils.get_total_norm(gradients))
    learner.policy.optimizer.zero_grad()
    padded = TextBlocks(*(np.pad(rows, ((0, 0), (0, 9))) for rows in (text.token_ids, text.learned)))
    batch = learner._text_batch(padded)
    assert batch.token_ids.tolist() == text.token_ids.tolist()
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    read: list[int] = []  # sequences per forward pass with gradients
    learner.policy.model.register_forward_pre_hook(
        lambda _, __, inputs: read.append(len(inputs["input_ids"])) if torch.is_grad_enabled() else None,
        with_kwargs=True,
    )
    metrics = learner.update(scored([1.0] * 8), iteration=0, text=padded)
    assert max(read) == {"micro_batch_size=64": 8}.get(passes, 1)
    assert metrics["generator/demonstration_loss"] == pytest.approx(before, rel=1e-5)
    assert metrics["generator/grad_norm"] == pytest.approx(expected, rel=1e-4)
    assert learner.mean_nll(demonstrations, model="policy") < before
