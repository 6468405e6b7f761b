"""The frozen reference models: the SFT model and, if configured, the model before SFT."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rlgaf_ray.config import load_config
from rlgaf_ray.models.generator import build_tiny_gpt2
from rlgaf_ray.training.learner import Learner
from rlgaf_ray.training.neural_discriminator import NeuralDiscriminator
from rlgaf_ray.types import Rollout, ScoredRollout

VOCABULARY = 64
SFT = "warmup.sft.steps=5"
LORA = ["model.lora.rank=2", "generator.average_decay=0"]
KL = {
    "reinforce": "generator.reinforce.kl",
    "seqgan": "generator.seqgan.kl",
    "ppo": "generator.ppo.kl",
    "gumbel": "generator.gumbel.kl",
}


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model whose weights all differ from the policy's, as after SFT."""
    path = tmp_path_factory.mktemp("base")
    build_tiny_gpt2(vocab_size=VOCABULARY, end_of_text_id=0, seed=8).save_pretrained(path)
    return path


@pytest.fixture
def build(folder: Path, base_folder: Path):
    def make(*overrides: str) -> Learner:
        small = ["rollout.batch_size=4", "learner.precision=float32", "rollout.stop_at_end_of_text=true"]
        config = load_config(None, [*small, "task.response_tokens=3", *overrides])
        learner = Learner(folder, config, pad_token_id=0, base_folder=base_folder)
        if config.generator.algorithm == "gumbel":
            update = NeuralDiscriminator(folder, config, pad_token_id=0).weights()
            assert update is not None
            learner.load_discriminator(update)
        return learner

    return make


def scored() -> list[ScoredRollout]:
    generator = np.random.default_rng(0)
    items = []
    for row in range(4):
        count = 1 + row % 3
        rollout = Rollout(
            prompt_id=0,
            prompt_ids=np.array([3, 4], np.int32),
            response_ids=generator.integers(1, VOCABULARY, count).astype(np.int32),
            behaviour_logprobs=np.full(count, -4.0, np.float32),
            finish_reason="stop",
            policy_version=0,
        )
        parts = np.eye(count, dtype=np.float32)[-1] * row
        items.append(ScoredRollout(rollout, float(row), 0, float(row), parts))
    return items


@pytest.mark.parametrize("lora", [[], LORA], ids=["whole", "lora"])
@pytest.mark.parametrize("algorithm", ["reinforce", "reinforce-chunked", "reinforce-k3", "seqgan", "ppo"])
def test_the_kl_uses_the_configured_reference(build, algorithm: str, lora: list[str]) -> None:
    """On fixed tokens the sampled KL is the NLL under the reference minus that under the policy."""
    algorithm, _, how = algorithm.partition("-")
    overrides = [SFT, f"generator.algorithm={algorithm}", *lora]
    overrides += {"chunked": ["learner.logprob_chunk_tokens=2"], "k3": [f"{KL[algorithm]}.estimator=k3"]}.get(how, [])
    items = scored()
    if algorithm == "seqgan":
        items = [replace(item, action_values=item.token_scores) for item in items]
    found, nll = {}, {}
    for reference in ("sft", "base"):
        learner = build(*overrides, f"{KL[algorithm]}.reference={reference}")
        nll[reference] = -_mean_logprob(learner.policy.kl_reference)
        own = learner.mean_nll([item.rollout for item in items], model="policy")
        assert learner.mean_nll([item.rollout for item in items], model="reference") == pytest.approx(own)
        found[reference] = learner.update(items, iteration=9)["generator/kl"]
        assert found[reference] == pytest.approx(nll[reference] - own, abs=1e-5)
    assert found["sft"] == pytest.approx(0, abs=1e-6) and abs(found["base"]) > 0.01
    base = build_tiny_gpt2(vocab_size=VOCABULARY, end_of_text_id=0, seed=8)
    assert nll["base"] == pytest.approx(-_mean_logprob(base))


@pytest.mark.parametrize("mode", ["autoregressive", "conditional"])
def test_gumbel_softmax_uses_the_configured_reference(build, mode: str) -> None:
    overrides = [SFT, "generator.algorithm=gumbel", f"generator.gumbel.mode={mode}"]
    kl = {
        reference: build(*overrides, f"generator.gumbel.kl.reference={reference}").update(scored(), iteration=0)
        for reference in ("sft", "base")
    }
    assert kl["sft"]["generator/kl"] == pytest.approx(0, abs=1e-6) and kl["base"]["generator/kl"] > 0.01


@pytest.mark.parametrize(
    ("overrides", "copies"),
    [
        ([SFT], 0),
        ([SFT, "generator.ppo.kl.reference=base"], 0),  # for an algorithm that is not in use
        ([SFT, "generator.reinforce.kl.reference=base"], 1),
        ([SFT, "reward.base_logprob=0.1"], 1),
        (["warmup.sft.steps=0", "generator.reinforce.kl.reference=base"], 0),  # the SFT model is the base model
        (["warmup.sft.steps=0", "reward.base_logprob=0.1"], 0),
    ],
)
def test_the_base_model_is_loaded_only_if_needed(build, overrides: list[str], copies: int) -> None:
    policy = build(*overrides).policy
    assert (policy.base is not policy.reference) == bool(copies)
    if copies:
        assert (policy.kl_reference is policy.base) == ("kl.reference=base" in overrides[1])
        assert not any(weight.requires_grad for weight in policy.base.parameters())


@pytest.mark.parametrize("algorithm", ["reinforce", "seqgan", "ppo"])
def test_tokens_are_rewarded_with_base_log_probs(build, algorithm: str) -> None:
    """No reward, KL or baseline: advantages are 0.1 x log p of the base model, summed over the remaining tokens."""
    bare = {
        "reinforce": "{credit: sequence, baseline: none, advantage_scale: none, kl: {coefficient: 0}}",
        "seqgan": "{baseline: none, advantage_scale: none, kl: {coefficient: 0}}",
        "ppo": "{whiten_rewards: false, whiten_advantages: false, gae_lambda: 1.0, kl: {coefficient: 0}}",
    }
    overrides = [SFT, f"generator.algorithm={algorithm}", f"generator.{algorithm}={bare[algorithm]}"]
    learner = build(*overrides, "reward.base_logprob=0.1")
    items = [replace(item, reward=0.0) for item in scored()]
    if algorithm == "seqgan":
        items = [replace(item, action_values=np.zeros_like(item.token_scores)) for item in items]
    rows = _logprobs(learner.policy.base)
    to_go = np.concatenate([np.cumsum(row[::-1]) for row in rows])
    metrics = learner.update(items, iteration=9)
    assert metrics["generator/advantage_deviation"] == pytest.approx(0.1 * to_go.std(), rel=1e-4)
    assert metrics["reward/base_logprob"] == pytest.approx(np.concatenate(rows).mean(), rel=1e-5)
    assert metrics["reward/mean"] == 0
    assert "reward/base_logprob" not in build(*overrides).update(items, iteration=9)


def test_with_the_entropy_bonus_it_is_a_kl_reward_to_the_base_model(build) -> None:
    """Token rewards of -0.1 x (log pi - log p_base), with both log-probs computed by the learner's networks in PPO."""
    ppo = "generator.ppo={whiten_rewards: false, kl: {coefficient: %s, reference: base}}"
    shared = [SFT, "generator.algorithm=ppo", "generator.max_grad_norm=1e9"]
    both = build(*shared, ppo % 0, "reward.base_logprob=0.1", "generator.entropy_bonus=0.1").update(
        scored(), iteration=9
    )
    kl = build(*shared, ppo % 0.1).update(scored(), iteration=9)
    assert both["generator/value_loss"] == pytest.approx(kl["generator/value_loss"], rel=1e-4)
    assert both["generator/grad_norm"] == pytest.approx(kl["generator/grad_norm"], rel=1e-3)
    assert build(*shared, ppo % 0).update(scored(), iteration=9)["generator/value_loss"] != pytest.approx(
        kl["generator/value_loss"], rel=0.01
    )


def test_a_checkpoint_has_no_reference(build, base_folder: Path, tmp_path: Path) -> None:
    overrides = [SFT, "generator.reinforce.kl.reference=base", "generator.learning_rate=1e-3"]
    learner = build(*overrides)
    learner.update(scored(), iteration=0)
    learner.save(tmp_path)
    again = build(*overrides)
    again.load(tmp_path)
    assert again.update(scored(), iteration=1) == learner.update(scored(), iteration=1)
    name = "transformer.h.0.mlp.c_fc.weight"
    fresh = build_tiny_gpt2(vocab_size=VOCABULARY, end_of_text_id=0, seed=8).state_dict()
    assert torch.equal(again.policy.base.state_dict()[name], fresh[name])


def _mean_logprob(model) -> float:
    """NLL in nats per response token of ``scored()``."""
    return float(np.concatenate(_logprobs(model)).mean())


@torch.no_grad()
def _logprobs(model) -> list[np.ndarray]:
    """Log-probs of the response tokens of ``scored()``, one sequence at a time, computed with transformers only."""
    rows = []
    for item in scored():
        prompt, response = item.rollout.prompt_ids, item.rollout.response_ids
        tokens = torch.tensor([[*prompt, *response]])
        logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0]
        logprobs = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        rows.append(logprobs.gather(1, tokens[0, len(prompt) :, None])[:, 0].numpy())
    return rows


def test_only_references_are_offloaded(build, monkeypatch: pytest.MonkeyPatch) -> None:
    """The averages are updated from the policy, on its device."""
    offloaded: list[bool] = []
    monkeypatch.setattr(
        "rlgaf_ray.training.policy.prepare", lambda *_, offload, frozen: offloaded.append(offload) if frozen else None
    )
    learner = build(
        SFT,
        "generator.reinforce.kl.reference=base",
        "generator.average_decay=0.9",
        "learner={strategy: fsdp, num_workers: 2, fsdp: {offload_reference: true}}",
    )
    assert list(learner.policy.averages) == ["average"]
    assert offloaded == [True, True, False]  # reference, base, average
