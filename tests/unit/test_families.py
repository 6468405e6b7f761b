"""Each family of docs/models.md: a whole run without Ray, what it exports, and tokens that carry gradients."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

import rlgaf_ray as rl
from rlgaf_ray.data.collate import collate_sequences
from rlgaf_ray.engines.transformers import TransformersEngine
from rlgaf_ray.errors import UserError
from rlgaf_ray.loop.local import LocalRoles
from rlgaf_ray.models.families import check_output_layer, check_vllm, scoring_class
from rlgaf_ray.models.generator import blocks_of, load_generator, policy_logprobs
from rlgaf_ray.models.scalar import ScalarModel
from rlgaf_ray.models.straight_through import align, soft_logits
from rlgaf_ray.run.checks import check_networks
from rlgaf_ray.run.preparation import Prepared
from rlgaf_ray.run.session import local_roles
from rlgaf_ray.training.regularization import freeze_lower_layers
from rlgaf_ray.types import Demonstration, Prompt, SamplingSettings, SequenceBatch
from tests.families import FAMILIES, Family, save_family

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
families = pytest.mark.parametrize("family", FAMILIES, ids=[family.name for family in FAMILIES])
RUN = [
    "run.name=run",
    "run.iterations=2",
    "task.name=jsonl",
    "task.prompt_tokens=400",  # a template can write a page before the first message
    "task.response_tokens=48",  # a template can write empty thoughts before the answer
    "warmup.generator.steps=1",
    "warmup.generator.batch_size=2",
    "warmup.sft.steps=1",
    "warmup.sft.batch_size=2",
    "warmup.discriminator.steps=1",
    "rollout.engine=transformers",
    "rollout.batch_size=4",
    "rollout.samples_per_prompt=2",
    "discriminator.batch_size=4",
    "discriminator.frozen_layers=1",
    "learner.precision=float32",
    "evaluation.num_prompts=10",
    "evaluation.num_samples=1",
    "evaluation.embeddings=false",
    "evaluation.every=0",
    "generator.average_decay=0",
    "checkpoint.every=2",
]


def config(family: Family, folder: Path, *more: str) -> rl.Config:
    """A run on sums, as chats where the family has a template."""
    chat = bool(family.template)
    rows = []
    for n in range(150):
        question, answer = f"what is {n} and {n}?", f"it is {2 * n}"
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        rows.append({"messages": messages} if chat else {"prompt": question, "response": answer})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = save_family(family, folder / "model")
    places = [f"run.root={folder}", f"warmup.cache={folder}/cache", f"task.jsonl.path={folder}/rows.jsonl"]
    return rl.load_config(None, [*RUN, *places, f"model.generator={model}", *more])


@families
def test_a_run_trains_and_exports_what_it_trained(family: Family, tmp_path: Path) -> None:
    kept: list[LocalRoles] = []

    def roles(prepared: Prepared) -> LocalRoles:
        kept.append(local_roles(prepared))
        return kept[-1]

    outcome = rl.train(config(family, tmp_path), roles=roles)
    folder = tmp_path / "run"
    assert (outcome.iteration, outcome.folder) == (2, folder)
    (played,) = kept
    learner, pad = played.learner, played.learner.pad_token_id
    prompts = [Prompt(row, np.arange(5, 8 + 3 * row, dtype=np.int32)) for row in range(2)]  # of 3 and 6 tokens
    rollouts = TransformersEngine(folder / "generator").generate(
        prompts, SamplingSettings(max_new_tokens=12, samples_per_prompt=2), seeds=range(4)
    )
    sequences = collate_sequences(rollouts, pad)
    with torch.no_grad():
        trained = learner.policy.logprobs(sequences)
        exported = policy_logprobs(load_generator(folder / "generator"), sequences)
        before = policy_logprobs(load_generator(tmp_path / "model"), sequences)
    torch.testing.assert_close(exported, trained, atol=1e-5, rtol=0)
    assert float((exported - before).abs().max()) > 1e-4
    for row, rollout in enumerate(rollouts):
        sampled = trained[row][sequences.response_mask[row]]
        np.testing.assert_allclose(rollout.behaviour_logprobs, sampled, atol=1e-4, rtol=0)

    scores = [item.score for item in played.score(rollouts)]
    judge = ScalarModel.load(folder / "discriminator", pooling="mean", pad_token_id=pad, seed=9)
    with torch.no_grad():
        np.testing.assert_allclose(judge(sequences), scores, atol=1e-5, rtol=0)


def named(name: str) -> Family:
    return next(family for family in FAMILIES if family.name == name)


@pytest.mark.parametrize("mode", ["autoregressive", "conditional"])
def test_gumbel_softmax_trains_a_model_whose_embedding_scales(mode: str, tmp_path: Path) -> None:
    more = ["generator.algorithm=gumbel", f"generator.gumbel.mode={mode}", "discriminator.frozen_layers=0"]
    outcome = rl.train(config(named("Gemma 3"), tmp_path, *more), roles="local")
    rows = [json.loads(line) for line in (outcome.folder / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if "generator/grad_norm" in row]
    assert len(trained) == 2 and all(row["generator/grad_norm"] > 0 for row in trained)
    if mode == "conditional":  # the soft response's logit beside the score that the discriminator gave its tokens
        assert all(row["generator/score_gap"] < 1e-4 for row in trained)


def test_a_run_keeps_what_the_folder_says_of_generation(tmp_path: Path) -> None:
    """transformers reads a temperature without do_sample, and refuses to write it."""
    prepared = config(named("SmolLM2"), tmp_path)
    settings = {"bos_token_id": 1, "eos_token_id": 2, "temperature": 0.9, "top_p": 0.6}
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(settings))
    outcome = rl.train(prepared, roles="local")
    written = json.loads((outcome.folder / "generator" / "generation_config.json").read_text())
    assert {name: written.get(name) for name in settings} == settings


def batch() -> SequenceBatch:
    """Two prompts and responses of different lengths."""
    rows = [([5, 50, 60], [70, 80, 2]), ([5, 50], [70, 80, 90, 91])]
    items = [Demonstration(np.array(prompt, np.int32), np.array(answer, np.int32)) for prompt, answer in rows]
    return collate_sequences(items, 0)


@families
def test_lower_layers_are_frozen(family: Family, tmp_path: Path) -> None:
    model = ScalarModel.load(save_family(family, tmp_path), pooling="mean", pad_token_id=0, seed=1)
    freeze_lower_layers(model.network, lambda total: total // 2)
    model(batch()).sum().backward()
    lower, upper = blocks_of(model.network)
    assert any(parameter.grad is not None for parameter in upper.parameters())
    frozen = [*lower.parameters(), model.network.get_input_embeddings().weight]
    assert not any(parameter.requires_grad for parameter in frozen)
    assert model.network.score.weight.grad is not None


@families
def test_soft_tokens_read_as_the_tokens_themselves(family: Family, tmp_path: Path) -> None:
    """One-hots times ``embedding`` score as token ids do: Gemma's embedding scales what it looks up."""
    model = ScalarModel.load(save_family(family, tmp_path), pooling="mean", pad_token_id=0, seed=1)
    sequences = batch()
    aligned = align(sequences)
    with torch.no_grad():
        torch.nn.init.normal_(model.network.score.weight, generator=torch.Generator().manual_seed(1))
        hard = model(sequences)
        soft = soft_logits(model, aligned, model.embedding[aligned.response_ids])
    torch.testing.assert_close(soft, hard, atol=1e-4, rtol=1e-4)
    assert float(hard.std()) > 1e-3


@families
def test_the_page_lists_it(family: Family, tmp_path: Path) -> None:
    model = load_generator(save_family(family, tmp_path))
    head = "transformers" if scoring_class(model.config) is None else "our own"
    chunks = "yes"
    try:
        check_output_layer(model)
    except UserError:
        chunks = "no"
    row = f"| {family.name} | `{family.model_type}` | {head} | {chunks} | {family.vllm or 'yes'} |"
    assert row in PAGE.splitlines()
    chunked = rl.load_config(
        None, [f"model.generator={tmp_path}", "rollout.engine=transformers", "learner.logprob_chunk_tokens=8"]
    )
    with nullcontext() if chunks == "yes" else pytest.raises(UserError, match="logprob_chunk_tokens needs logits that"):
        check_networks(chunked)
    with pytest.raises(UserError, match=r"rollout\.engine=transformers") if family.vllm else nullcontext():
        check_vllm(str(tmp_path), model.config, on_cpu=True)


def test_the_page_lists_no_other_family() -> None:
    rows = [line.split(" | ")[0].removeprefix("| ") for line in PAGE.splitlines() if line.count(" | ") == 4]
    assert rows[1:] == [family.name for family in FAMILIES]
