"""Token ids without an embedding are rejected before Ray starts; ids without a token are never sampled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from rlgaf_ray import Config, load_config
from rlgaf_ray.actors.warmup import prepare_warmups
from rlgaf_ray.data.collate import collate_sequences
from rlgaf_ray.data.vocabulary import check_token_ids
from rlgaf_ray.engines.transformers import TransformersEngine
from rlgaf_ray.errors import UserError
from rlgaf_ray.models.vocabulary import masked_token_ids, unused_token_ids
from rlgaf_ray.run.checks import check_before_start
from rlgaf_ray.run.preparation import prepare_data
from rlgaf_ray.testing import FakeTask
from rlgaf_ray.training.policy import Policy
from rlgaf_ray.types import Prompt, SamplingSettings
from tests.families import FAMILIES, save_family, tokenizer

LLAMA = next(family for family in FAMILIES if family.name == "SmolLM2")
SIZE = len(tokenizer(LLAMA))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_family(LLAMA, tmp_path / "model")


def add_to_tokenizer(folder: Path, *tokens: str, **special: str) -> None:
    """Add tokens without ``resize_token_embeddings``."""
    words = AutoTokenizer.from_pretrained(folder)
    words.add_tokens(list(tokens))
    words.add_special_tokens({**special})
    words.save_pretrained(folder)


def config(folder: Path, *more: str, word: str = "") -> Config:
    rows = [{"prompt": f"what is {n} and {n}?", "response": f"it is {2 * n}{word}"} for n in range(150)]
    path = folder.parent / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["task.name=jsonl", f"task.jsonl.path={path}", "task.prompt_tokens=40", "task.response_tokens=40"]
    return load_config(None, [*words, "rollout.engine=transformers", f"model.generator={folder}", *more])


@pytest.mark.parametrize("name", ["pad_token", "eos_token"])
def test_a_special_token_outside_the_embedding_is_rejected(folder: Path, tmp_path: Path, name: str) -> None:
    add_to_tokenizer(folder, **{name: "[NEW]"})
    with pytest.raises(UserError) as error:
        prepare_data(config(folder), tmp_path)
    assert str(error.value) == (
        f"model.generator={folder} has {SIZE} embeddings and its tokenizer {SIZE + 1} tokens: '[NEW]' ({name}) has the "
        f"id {SIZE}; call model.resize_token_embeddings({SIZE + 1}) and save the model, or remove this token"
    )


def test_an_added_token_is_rejected_only_if_the_data_has_it(folder: Path, tmp_path: Path) -> None:
    add_to_tokenizer(folder, "<note>", "<image_soft_token>")  # as Gemma 3's tokenizer for a text-only model
    assert prepare_data(config(folder), tmp_path).tokenizer.convert_tokens_to_ids("<note>") == SIZE
    with pytest.raises(UserError, match=rf"'<note>' \((demonstrations|part \w+)\) has the id {SIZE}; call model"):
        prepare_data(config(folder, word="<note>"), tmp_path)


def test_token_ids_of_a_custom_task_are_checked(folder: Path) -> None:
    words: Any = tokenizer(LLAMA)
    check_token_ids(FakeTask(range(40)), words, 140, "m", block_tokens=None)  # 139 is the largest id
    for part in ("demonstrations", "contrast"):
        task = FakeTask(range(40 if part == "demonstrations" else 3), range(40 if part == "contrast" else 3))
        with pytest.raises(UserError, match=rf"m has 139 embeddings .* \({part}\) has the id 139"):
            check_token_ids(task, words, 139, "m", block_tokens=None)
    with pytest.raises(UserError, match="text of the base warm-up"):
        check_token_ids(Blocks(range(3), range(3)), words, 139, "m", block_tokens=2)


class Blocks(FakeTask):
    def warmup_blocks(self, block_tokens: int):
        return FakeTask(range(40)).warmup_blocks(block_tokens)


def test_ids_without_a_token_are_never_sampled(tmp_path: Path) -> None:
    """Embeddings padded to a multiple of 64 produce logits for ids without a token."""
    source = save_family(LLAMA, tmp_path / "model", spare_embeddings=400)
    settings = config(
        source,
        *("warmup.generator.steps=0", "warmup.sft.steps=0", "warmup.discriminator.steps=0"),
        *(f"warmup.cache={tmp_path / 'cache'}", "learner.precision=float32"),
    )
    data = prepare_data(settings, tmp_path)
    made = prepare_warmups(settings, data.task, data.tokenizer, tmp_path, lambda stage, progress: None, with_ray=False)
    prompts = [Prompt(row, np.arange(5, 9 + row, dtype=np.int32)) for row in range(4)]
    sampling = SamplingSettings(max_new_tokens=20, samples_per_prompt=2)
    before = TransformersEngine(source).generate(prompts, sampling, seeds=range(8))
    assert max(int(rollout.response_ids.max()) for rollout in before) >= SIZE  # more than half of the ids have no token
    engine = TransformersEngine(made.generator)
    rollouts = engine.generate(prompts, sampling, seeds=range(8))
    assert max(int(rollout.response_ids.max()) for rollout in rollouts) < SIZE

    policy = Policy(made.generator, settings, device=torch.device("cpu"), base_folder=made.base)
    assert policy.masked_token_ids == list(range(SIZE, SIZE + 400))
    sequences = collate_sequences(rollouts, 0)
    with torch.no_grad():
        logprobs = policy.logprobs(sequences)
        total = policy.distributions(sequences).exp().sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total))
    for row, rollout in enumerate(rollouts):
        expected = logprobs[row][sequences.response_mask[row]]
        np.testing.assert_allclose(rollout.behaviour_logprobs, expected, atol=1e-4, rtol=0)


def test_unused_token_ids() -> None:
    words = tokenizer(LLAMA)
    words.add_tokens(["<a>"])
    assert unused_token_ids(words, SIZE + 1) == []
    assert unused_token_ids(words, SIZE + 3) == [SIZE + 1, SIZE + 2]
    assert unused_token_ids(words, SIZE - 9) == []  # a tokenizer with more tokens than the model


def test_vllm_on_a_gpu_excludes_at_most_1024_unused_ids(tmp_path: Path) -> None:
    def check(spare: int, *more: str) -> None:
        folder = save_family(LLAMA, tmp_path / str(spare), spare_embeddings=spare)
        check_before_start(config(folder, "rollout.engine=vllm", *more))

    check(1024, "cluster.gpus_per_actor=1")
    check(1025)
    check(1025, "cluster.gpus_per_actor=1", "rollout.engine=transformers")
    with pytest.raises(UserError, match=r"has 1025 embeddings without a token, of which vLLM on a GPU"):
        check(1025, "cluster.gpus_per_actor=1")


def test_a_model_without_spare_embeddings_masks_only_end_of_text(folder: Path) -> None:
    found = TransformersEngine(folder)._model.config
    assert masked_token_ids(found, stop_at_end_of_text=True) == []
    assert masked_token_ids(found, stop_at_end_of_text=False) == [found.eos_token_id]
