"""End-of-text ids are collected from all files of a model, and saved models list them all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from rlgaf_ray.errors import UserError
from rlgaf_ray.models.ends import merged, model_ends, set_ends
from rlgaf_ray.models.generator import end_of_text_ids, load_generator
from rlgaf_ray.models.tokenizer import train_bpe, wrap_bpe


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return wrap_bpe(train_bpe(["a few words"] * 9, 300))  # end of text is 0


def folder_with(path: Path, config: Any, generation: Any) -> Path:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=8, n_layer=1, n_head=1, eos_token_id=None))
    model.generation_config = GenerationConfig()
    model.save_pretrained(path)
    for file, value in (("config.json", config), ("generation_config.json", generation)):
        content = json.loads((path / file).read_text())
        (path / file).write_text(json.dumps({**content, "eos_token_id": value}))
    if generation == "none":
        (path / "generation_config.json").unlink()
    return path


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        (0, None, [0]),
        (7, None, [0, 7]),  # a base model whose tokenizer ends a turn
        (0, [0, 9], [0, 9]),  # a chat model with a second end only in generation_config.json
        ([7, 8], [8, 9], [0, 7, 8, 9]),
        (7, [9, 300, -1], [0, 7, 9]),  # the vocabulary has 300 tokens
        (None, None, [0]),
        (5, "none", [0, 5]),
        (5, "damaged", [0, 5]),
    ],
)
def test_ends_are_merged_from_all_files(
    config: Any, generation: Any, expected: list[int], tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    folder = folder_with(tmp_path, config, None if generation == "damaged" else generation)
    if generation == "damaged":
        (folder / "generation_config.json").write_text("{")
    assert model_ends(folder, tokenizer) == expected


@pytest.mark.parametrize("value", ["</s>", 1.5, [0, "</s>"], True])
def test_an_end_that_is_not_a_token_id_raises(value: Any, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, 0, value)
    with pytest.raises(UserError, match=r"eos_token_id of generation_config\.json is .*: give a token id"):
        model_ends(folder, tokenizer)


def test_a_model_from_scratch_uses_its_tokenizers_end(tokenizer: PreTrainedTokenizerFast) -> None:
    assert model_ends("tiny-gpt2", tokenizer) == [0]
    assert model_ends("film-reviews", tokenizer) == [0]
    assert merged(3, None, [3, 4], {5}) == [3, 4, 5]


def test_saved_models_list_all_ends(tmp_path: Path) -> None:
    model = load_generator(folder_with(tmp_path / "model", 7, None))
    for ends, written in (([0, 7, 9], [0, 7, 9]), ([4], 4)):
        set_ends(model, ends)
        model.save_pretrained(tmp_path / "saved")
        assert end_of_text_ids(load_generator(tmp_path / "saved").config) == ends
        for file in ("config.json", "generation_config.json"):
            assert json.loads((tmp_path / "saved" / file).read_text())["eos_token_id"] == written
