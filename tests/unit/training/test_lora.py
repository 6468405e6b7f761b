"""Training LoRA adapters only: one copy of the base weights, small checkpoints, merged exports."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rlgaf_ray.config import Config, load_config
from rlgaf_ray.models.lora import ADAPTERS
from rlgaf_ray.models.scalar import ScalarModel
from rlgaf_ray.training import learner as learner_module
from rlgaf_ray.training.distributed import Group
from rlgaf_ray.training.export import export_merged
from rlgaf_ray.training.learner import Learner
from rlgaf_ray.training.neural_discriminator import NeuralDiscriminator
from rlgaf_ray.types import Demonstration, Rollout, ScoredRollout
from rlgaf_ray.weights.state import Receipt, check_shapes, expected_shapes, split_state

VOCABULARY = 64


def config(*overrides: str) -> Config:
    small = ["rollout.batch_size=4", "learner.precision=float32", "model.lora.rank=4", "generator.average_decay=0"]
    return load_config(None, [*small, "generator.learning_rate=1e-2", "discriminator.learning_rate=1e-2", *overrides])


def rollouts(seed: int = 0) -> list[Rollout]:
    numbers = np.random.default_rng(seed)
    return [
        Rollout(
            prompt_id=0,
            prompt_ids=np.array([3, 4], np.int32),
            response_ids=numbers.integers(1, VOCABULARY, 5).astype(np.int32),
            behaviour_logprobs=np.full(5, -4.0, np.float32),
            finish_reason="length",
            policy_version=0,
        )
        for _ in range(4)
    ]


def scored() -> list[ScoredRollout]:
    parts = np.eye(5, dtype=np.float32)[-1]
    return [ScoredRollout(r, float(i), 0, float(i), parts * i) for i, r in enumerate(rollouts())]


def demonstrations() -> list[Demonstration]:
    return [Demonstration(rollout.prompt_ids, rollout.response_ids) for rollout in rollouts(seed=1)]


@pytest.mark.parametrize("algorithm", ["reinforce", "ppo", "gumbel"])
def test_an_update_changes_the_adapters_only(folder: Path, algorithm: str) -> None:
    settings = [f"generator.algorithm={algorithm}", "generator.ppo.critic_warmup_iterations=0"]
    learner = Learner(folder, config(*settings), pad_token_id=0)
    if algorithm == "gumbel":
        update = NeuralDiscriminator(folder, config(), pad_token_id=0).weights()
        assert update is not None
        learner.load_discriminator(update)
    items = rollouts()
    start = learner.mean_nll(items, model="policy")
    frozen = {n: p.detach().clone() for n, p in learner.policy.model.named_parameters() if not p.requires_grad}
    learner.update(scored(), iteration=0)
    assert learner.mean_nll(items, model="reference") == start
    assert abs(learner.mean_nll(items, model="policy") - start) > 1e-3
    now = dict(learner.policy.model.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in frozen.items())
    trained = {name for group in learner.policy.optimizer.param_groups for name in map(id, group["params"])}
    assert trained == {id(p) for n, p in now.items() if ".lora_" in n}


def test_the_reference_shares_the_base_weights(folder: Path) -> None:
    learner = Learner(folder, config(), pad_token_id=0)
    assert learner.policy.network("reference").network is learner.policy.model


def test_a_push_is_a_full_state_dict_without_adapters(folder: Path) -> None:
    learner = Learner(folder, config(), pad_token_id=0)
    learner.update(scored(), iteration=0)
    update = learner.weights(1)
    check_shapes(update, expected_shapes(learner.policy.model.config))


def test_chunks_of_a_push_have_merged_weights(folder: Path) -> None:
    learner = Learner(folder, config(), pad_token_id=0)
    learner.update(scored(), iteration=0)
    small = partial(split_state, max_bytes=20_000)
    with patch.object(learner_module, "split_state", lambda network, max_bytes: small(network)):
        parts = [learner.weights_part(1, part) for part in range(learner.num_parts())]
    assert len(parts) > 3
    receipt = Receipt(expected_shapes(learner.policy.model.config))
    found: dict[str, np.ndarray] = {}
    for part in parts:
        assert part is not None
        receipt.take(part)
        found |= part.arrays
    for name, array in learner.weights(1).arrays.items():
        np.testing.assert_array_equal(found[name], array)


def test_only_rank_zero_sends_and_writes(folder: Path, tmp_path: Path) -> None:
    learner = Learner(folder, config(), pad_token_id=0)
    learner.group = Group(rank=1, size=2)
    assert learner.weights_part(1, 0) is None
    learner.save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_chunked_log_probs_are_the_same_with_and_without_adapters(folder: Path) -> None:
    whole = Learner(folder, config("generator.reinforce.kl.estimator=exact"), pad_token_id=0)
    chunked = Learner(
        folder,
        config("generator.reinforce.kl.estimator=exact", "learner.logprob_chunk_tokens=3"),
        pad_token_id=0,
    )
    for iteration in range(2):  # after the first step policy and reference differ
        one, other = (learner.update(scored(), iteration=iteration) for learner in (whole, chunked))
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert other[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert one["generator/kl_exact"] > 1e-6
    items = rollouts()
    for model in ("policy", "reference"):
        assert chunked.mean_nll(items, model=model) == pytest.approx(whole.mean_nll(items, model=model), abs=1e-5)


def test_checkpoints_have_adapters_and_optimisers_and_resume_exactly(folder: Path, tmp_path: Path) -> None:
    learner = Learner(folder, config(), pad_token_id=0)
    discriminator = NeuralDiscriminator(folder, config(), pad_token_id=0)
    learner.update(scored(), iteration=0)
    discriminator.update(demonstrations(), rollouts())
    learner.save(tmp_path / "learner")
    discriminator.save(tmp_path / "discriminator")
    assert [path.name for path in (tmp_path / "learner" / "generator").iterdir()] == [ADAPTERS]
    assert not (tmp_path / "discriminator" / "model.safetensors").exists()
    again = Learner(folder, config(), pad_token_id=0)
    once_more = NeuralDiscriminator(folder, config(), pad_token_id=0)
    again.load(tmp_path / "learner")
    once_more.load(tmp_path / "discriminator", version=1)
    for one in (learner, again):
        one.update(scored(), iteration=1)
    for other in (discriminator, once_more):
        other.update(demonstrations(), rollouts(seed=2))
    for ours, theirs in ((learner.weights(2), again.weights(2)), (discriminator.weights(), once_more.weights())):
        assert ours is not None and theirs is not None
        for name, array in ours.arrays.items():
            np.testing.assert_array_equal(array, theirs.arrays[name])


def test_the_final_export_has_merged_models(folder: Path, tmp_path: Path) -> None:
    learner = Learner(folder, config(), pad_token_id=0)
    discriminator = NeuralDiscriminator(folder, config(), pad_token_id=0)
    learner.update(scored(), iteration=0)
    discriminator.update(demonstrations(), rollouts())
    learner.save(tmp_path / "learner")
    discriminator.save(tmp_path / "discriminator")
    export_merged(config(), tmp_path, tmp_path / "run", generator=folder, discriminator=folder, pad_token_id=0)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "generator").eval()
    tokens = torch.arange(1, 9)[None]
    with torch.no_grad():
        expected = learner.policy.model(input_ids=tokens).logits
        torch.testing.assert_close(plain(input_ids=tokens).logits, expected, atol=1e-5, rtol=0)
    scalar = ScalarModel.load(tmp_path / "run" / "discriminator", pooling="mean", pad_token_id=0, seed=9)
    with torch.no_grad():
        logits = scalar(discriminator.collate(rollouts()))
    np.testing.assert_allclose(logits, [item.score for item in discriminator.score(rollouts())], atol=1e-5)
    assert scalar.network.config.rlgaf_pooling == "mean"
