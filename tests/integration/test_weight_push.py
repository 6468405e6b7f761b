"""A real vLLM in a Ray actor, fed through the object store, held to the learner's log-probs before and after pushes."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from rlgaf_ray.actors.cluster import ray_session
from rlgaf_ray.config import Config
from rlgaf_ray.data.collate import collate_sequences
from rlgaf_ray.engines.sampling import sampling_logprobs
from rlgaf_ray.engines.transformers import TransformersEngine
from rlgaf_ray.engines.vllm import VLLMEngine
from rlgaf_ray.models.generator import load_generator, policy_logprobs
from rlgaf_ray.types import Prompt, Rollout, SamplingSettings
from rlgaf_ray.weights.state import split_state, to_arrays

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")

END = 0
VOCABULARY = 300
POSITIONS = 192
TIED = GPT2Config(
    vocab_size=VOCABULARY, n_positions=POSITIONS, n_embd=64, n_layer=2, n_head=2, bos_token_id=END, eos_token_id=END
)
UNTIED = LlamaConfig(  # vLLM's CPU attention takes heads of 32 and more
    vocab_size=VOCABULARY,
    hidden_size=128,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=POSITIONS,
    tie_word_embeddings=False,
    bos_token_id=END,
    eos_token_id=END,
)
FULL_LENGTH = SamplingSettings(max_new_tokens=16, samples_per_prompt=2, stop_at_end_of_text=False)


@dataclass
class Pair:
    """One random model, on disk, as the learner has it, and behind vLLM in an actor."""

    folder: Path
    model: PreTrainedModel
    engine: ray.actor.ActorHandle
    version: int = 0

    def generate(self, prompts: list[Prompt], sampling: SamplingSettings, seeds: range) -> list[Rollout]:
        return ray.get(self.engine.generate.remote(prompts, sampling, seeds=seeds))

    def push(self, model: PreTrainedModel) -> None:
        self.version += 1
        update = ray.put(to_arrays(model.state_dict(), self.version))
        ray.get(self.engine.update_weights.remote(update))

    def push_in_parts(self, model: PreTrainedModel, max_bytes: int) -> int:
        """The number of parts."""
        self.version += 1
        state, parts = model.state_dict(), split_state(model, max_bytes=max_bytes)
        for part, names in enumerate(parts):
            entries = {name: state[name] for name in names}
            update = ray.put(to_arrays(entries, self.version, part=part, num_parts=len(parts)))
            ray.get(self.engine.update_weights.remote(update))
        return len(parts)


def prompts(*lengths: int) -> list[Prompt]:
    numbers = np.random.default_rng(0)
    return [Prompt(row, numbers.integers(1, VOCABULARY, length).astype(np.int32)) for row, length in enumerate(lengths)]


def learner_logprobs(model: PreTrainedModel, rollouts: list[Rollout], sampling: SamplingSettings) -> list[np.ndarray]:
    """What the learner computes for the sampled tokens."""
    batch = collate_sequences(rollouts, pad_token_id=END)
    with torch.no_grad():
        logprobs = policy_logprobs(
            model,
            batch,
            temperature=sampling.temperature,
            masked_token_ids=[] if sampling.stop_at_end_of_text else [END],
        )
    return [row[mask].numpy() for row, mask in zip(logprobs, batch.response_mask, strict=True)]


def largest_error(model: PreTrainedModel, rollouts: list[Rollout], sampling: SamplingSettings) -> float:
    return max(
        float(np.abs(rollout.behaviour_logprobs - expected).max())
        for rollout, expected in zip(rollouts, learner_logprobs(model, rollouts, sampling), strict=True)
    )


def perturb(model: PreTrainedModel, seed: int) -> None:
    numbers = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=numbers) * 0.05)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory):
    folders = {}
    for name, kind, config in (("tied", GPT2LMHeadModel, TIED), ("untied", LlamaForCausalLM, UNTIED)):
        folders[name] = tmp_path_factory.mktemp(name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            kind(config).save_pretrained(folders[name])
    with ray_session(Config()):
        actor: Any = ray.remote(num_cpus=0)(VLLMEngine)
        engines = {
            name: actor.remote(folder, max_model_len=POSITIONS, kv_cache_mib=64, threads=1)
            for name, folder in folders.items()
        }
        yield {name: Pair(folders[name], load_generator(folders[name]), engine) for name, engine in engines.items()}


@pytest.fixture(params=["tied", "untied"])
def pair(request: pytest.FixtureRequest, pairs: dict[str, Pair]) -> Pair:
    return pairs[request.param]


def test_the_models_are_what_the_test_says() -> None:
    assert TIED.tie_word_embeddings
    assert not UNTIED.tie_word_embeddings


def test_three_pushes_leave_no_difference_to_the_learner(pair: Pair) -> None:
    # Two prompts fill a whole block of the prefix cache (128 tokens): they show stale keys and values.
    same_prompts = prompts(3, 140, 9, 150)
    before = pair.generate(same_prompts, FULL_LENGTH, range(8))
    assert largest_error(pair.model, before, FULL_LENGTH) < 1e-4
    for seed in range(3):
        old = pair.generate(same_prompts, FULL_LENGTH, range(8))  # fills the cache with this version's values
        perturb(pair.model, seed)
        pair.push(pair.model)
        new = pair.generate(same_prompts, FULL_LENGTH, range(8))
        assert {rollout.policy_version for rollout in new} == {pair.version}
        assert largest_error(pair.model, new, FULL_LENGTH) < 1e-4
        assert largest_error(pair.model, old, FULL_LENGTH) > 1e-2  # the push did change the model
        again = pair.generate(same_prompts, FULL_LENGTH, range(8))  # now with cached prefixes
        assert largest_error(pair.model, again, FULL_LENGTH) < 1e-4


def test_a_push_in_parts_leaves_no_difference_either(pair: Pair) -> None:
    same_prompts = prompts(3, 140, 9, 150)
    pair.generate(same_prompts, FULL_LENGTH, range(8))  # fills the cache with the old version's values
    perturb(pair.model, 7)
    assert pair.push_in_parts(pair.model, max_bytes=40_000) > 5
    new = pair.generate(same_prompts, FULL_LENGTH, range(8))
    assert {rollout.policy_version for rollout in new} == {pair.version}
    assert largest_error(pair.model, new, FULL_LENGTH) < 1e-4


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingSettings(max_new_tokens=12),
        SamplingSettings(max_new_tokens=12, temperature=0.6),
        SamplingSettings(max_new_tokens=12, temperature=1.7, stop_at_end_of_text=False),
    ],
    ids=["plain", "temperature", "temperature and mask"],
)
def test_behaviour_logprobs_are_those_of_the_sampled_distribution(pair: Pair, sampling: SamplingSettings) -> None:
    rollouts = pair.generate(prompts(1, 4, 7), sampling, range(3))
    assert largest_error(pair.model, rollouts, sampling) < 1e-5


def test_truncation_is_in_the_behaviour_logprobs(pairs: dict[str, Pair]) -> None:
    pair = pairs["tied"]
    sampling = SamplingSettings(
        max_new_tokens=12, temperature=0.9, top_k=40, top_p=0.8, samples_per_prompt=8, stop_at_end_of_text=False
    )
    for rollout in pair.generate(prompts(2, 5), sampling, range(16)):
        token_ids = torch.from_numpy(np.concatenate([rollout.prompt_ids, rollout.response_ids])).long()
        with torch.no_grad():
            logits = pair.model(token_ids[None]).logits[0, len(rollout.prompt_ids) - 1 : -1]
        expected = sampling_logprobs(logits, sampling, masked_ids=[END]).numpy()[range(12), rollout.response_ids]
        np.testing.assert_allclose(rollout.behaviour_logprobs, expected, atol=1e-5)


def test_a_seed_gives_its_rollout_in_any_company(pair: Pair) -> None:
    some = prompts(3, 5, 3, 8)
    together = pair.generate(some, FULL_LENGTH, range(100, 108))
    assert [rollout.prompt_id for rollout in together] == [0, 0, 1, 1, 2, 2, 3, 3]
    one = SamplingSettings(max_new_tokens=16, stop_at_end_of_text=False)
    for index, rollout in enumerate(together):
        (alone,) = pair.generate([some[index // 2]], one, range(100 + index, 101 + index))
        assert alone.response_ids.tolist() == rollout.response_ids.tolist()
        np.testing.assert_allclose(alone.behaviour_logprobs, rollout.behaviour_logprobs, atol=1e-5)
    assert together[0].response_ids.tolist() != together[1].response_ids.tolist()


def test_end_of_text_stops_or_cannot_be_sampled(pairs: dict[str, Pair]) -> None:
    pair = pairs["tied"]
    gpt2: Any = pair.model
    with torch.no_grad():
        gpt2.transformer.ln_f.bias.copy_(gpt2.transformer.wte.weight[END] * 20)  # make it likely
    pair.push(pair.model)
    stopping = SamplingSettings(max_new_tokens=20, samples_per_prompt=16)
    rollouts = pair.generate(prompts(3, 4), stopping, range(32))
    assert largest_error(pair.model, rollouts, stopping) < 1e-4
    assert sum(rollout.finish_reason == "stop" for rollout in rollouts) >= 8
    for rollout in rollouts:
        assert END not in rollout.response_ids[:-1]
        assert (rollout.response_ids[-1] == END) == (rollout.finish_reason == "stop")
    masked = SamplingSettings(max_new_tokens=20, samples_per_prompt=16, stop_at_end_of_text=False)
    for rollout in pair.generate(prompts(3, 4), masked, range(32)):
        assert rollout.finish_reason == "length"
        assert len(rollout.response_ids) == 20
        assert END not in rollout.response_ids


def test_bfloat16_weights_arrive_as_they_are(pairs: dict[str, Pair]) -> None:
    pair = pairs["untied"]
    rounded = load_generator(pair.folder, dtype="bfloat16")
    pair.push(rounded)
    sampling = SamplingSettings(max_new_tokens=8)
    rollouts = pair.generate(prompts(3, 4), sampling, range(2))
    assert largest_error(rounded.float(), rollouts, sampling) < 1e-4
    pair.push(pair.model)


def test_an_incomplete_push_is_refused_and_the_engine_goes_on(pair: Pair) -> None:
    tied_copy_dropped = dict(pair.model.state_dict())
    del tied_copy_dropped["lm_head.weight"]
    with pytest.raises(ValueError, match=r"lack 'lm_head\.weight': send every entry of state_dict\(\)"):
        ray.get(pair.engine.update_weights.remote(to_arrays(tied_copy_dropped, 99)))
    rollouts = pair.generate(prompts(3, 4), FULL_LENGTH, range(4))
    assert {rollout.policy_version for rollout in rollouts} == {pair.version}
    assert largest_error(pair.model, rollouts, FULL_LENGTH) < 1e-4


def test_both_engines_sample_from_the_same_distribution(pair: Pair) -> None:
    other = TransformersEngine(pair.folder)
    pair.push(pair.model)
    other.update_weights(to_arrays(pair.model.state_dict(), 1))
    sampling = SamplingSettings(max_new_tokens=1, samples_per_prompt=3000, stop_at_end_of_text=False)
    (prompt,) = prompts(3)
    counts = [
        np.bincount([int(rollout.response_ids[0]) for rollout in rollouts], minlength=VOCABULARY)
        for rollouts in (
            pair.generate([prompt], sampling, range(3000)),
            other.generate([prompt], sampling, seeds=range(3000)),
        )
    ]
    with torch.no_grad():
        logits = pair.model(torch.from_numpy(prompt.token_ids).long()[None]).logits[:, -1]
    expected = sampling_logprobs(logits, sampling, masked_ids=[END])[0].exp().numpy() * 3000
    likely = expected >= 5
    for count in counts:
        # Pearson's chi-square over the likely tokens and all others as one: its mean is the number of cells - 1
        observed = np.append(count[likely], count[~likely].sum())
        wanted = np.append(expected[likely], expected[~likely].sum())
        statistic = ((observed - wanted) ** 2 / wanted).sum()
        freedom = len(observed) - 1
        assert statistic < freedom + 4 * np.sqrt(2 * freedom)
