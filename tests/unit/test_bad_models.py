"""Configs of fitting types, model folders and chats: whatever they hold, the program works or says what is wrong.

Up to where Ray would start, as ``tests/unit/test_bad_input.py`` does for other inputs.
"""

from __future__ import annotations

import json
import shutil
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
import transformers
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from transformers import GPT2Config, GPT2LMHeadModel

from rlgaf_ray.config import Config, dump_config, load_config
from rlgaf_ray.models.tokenizer import train_bpe, wrap_bpe
from rlgaf_ray.run.checks import check_before_start
from rlgaf_ray.run.preparation import prepare_data
from rlgaf_ray.training.fingerprint import model_fingerprint
from tests.unit.fuzz import JSON, cases, damages, refused_or_done, write

INTEGERS = st.sampled_from([0, 1, 2, 3, 4, 8, 16, 63, 64, 1000, -1, 2**31])
NUMBERS = st.sampled_from([0.0, 0.1, 0.5, 0.985, 1.0, 2.0, -1.0, 1e-5, 1e9, float("inf"), float("nan")])
WORDS = st.sampled_from(["", "a", "film-reviews", "tiny-gpt2", "seqgan-lstm", "eval/f1", "s3://b/x", "runs", "auto"])


# Configs whose values have the types of their keys: they pass the parser, and reach the rules between sections.


def values_of(annotation: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type, in its bounds or not."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return values_of(arguments[0])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (Union, types.UnionType):
        return st.one_of([values_of(each) for each in arguments])
    if origin in (list, tuple):
        inner = values_of(arguments[0])
        return st.lists(inner, max_size=3)
    simple = {bool: st.booleans(), int: INTEGERS, float: NUMBERS | INTEGERS, str: WORDS, type(None): st.none()}
    return simple.get(annotation, JSON)


def leaves(section: type[BaseModel], prefix: str = "") -> dict[str, st.SearchStrategy[Any]]:
    """A strategy for each dotted key that is no section."""
    found: dict[str, st.SearchStrategy[Any]] = {}
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= leaves(kind, f"{prefix}{name}.")
        else:
            found[prefix + name] = values_of(kind)
    return found


LEAVES = leaves(Config)
del LEAVES["model.generator"]  # another name would be looked for on the hub
CHANGES = st.lists(st.sampled_from(sorted(LEAVES)), min_size=1, max_size=5, unique=True).flatmap(
    lambda keys: st.fixed_dictionaries({key: LEAVES[key] for key in keys})
)


@cases(few=200, full=2500)
@given(CHANGES)
def test_configs_of_fitting_types(changes: dict[str, Any]) -> None:
    words = [f"{key}={yaml.safe_dump(value, default_flow_style=True)}" for key, value in changes.items()]

    def work() -> None:
        config = load_config(None, words)
        dump_config(config)
        check_before_start(config)

    refused_or_done(work)


# Model folders.

TEMPLATES = {
    "plain": "{% for message in messages %}<{{ message.role }}>{{ message.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}",
    "strict": "{% if messages[0].role == 'system' %}{{ raise_exception('no system prompt') }}{% endif %}"
    "{% for message in messages %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}<{{ message.role }}>{{ message.content | trim }}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
    "tools": "{% for message in messages %}{% if message.tool_calls is defined %}{% for call in message.tool_calls %}"
    "{{ call.function.name }}{% endfor %}{% endif %}<{{ message['role'] }}>{{ message['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a few kilobytes, and rows for it."""
    transformers.logging.set_verbosity_error()
    folder = tmp_path_factory.mktemp("model")
    rows = [{"prompt": f"question {row}", "response": f"answer {row}"} for row in range(40)]
    tokenizer = wrap_bpe(train_bpe([json.dumps(row) for row in rows], 280))
    tokenizer.chat_template = TEMPLATES["plain"]
    tokenizer.save_pretrained(folder)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=8, n_layer=1, n_head=1)
    config.bos_token_id = config.eos_token_id = config.pad_token_id = 0
    GPT2LMHeadModel(config).save_pretrained(folder)
    write(folder / "pairs.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    return folder


def prepare(model: Path, rows: Path, cache: Path) -> None:
    """All that is done before Ray starts."""
    config = load_config(
        None,
        [
            f"model.generator={model}",
            "task.name=jsonl",
            f"task.jsonl.path={rows}",
            f"warmup.cache={cache}",
            "task.prompt_tokens=32",
            "task.response_tokens=16",
            "warmup.generator.steps=1",
            "discriminator.frozen_layers=0",
            "rollout.engine=transformers",
        ],
    )
    check_before_start(config)
    prepare_data(config, cache)
    model_fingerprint(config.model.generator)


def in_a_copy(whole: Path, folder: Path, change: Callable[[Path], object]) -> bool:
    model = folder / "model"
    shutil.rmtree(model, ignore_errors=True)
    shutil.copytree(whole, model)
    change(model)
    return refused_or_done(lambda: prepare(model, whole / "pairs.jsonl", folder / "cache"))


def test_the_whole_model_is_taken(whole: Path, tmp_path: Path) -> None:
    assert in_a_copy(whole, tmp_path, lambda model: None)


FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors",
         "chat_template.jinja")  # fmt: skip


@cases(few=40, full=600)
@given(st.sampled_from(FILES), damages() | st.none())
def test_damaged_model_folders(whole: Path, tmp_path: Path, name: str, damage: Any) -> None:
    def change(model: Path) -> None:
        path = model / name
        content = path.read_bytes() if path.is_file() else b"{}"
        path.unlink(missing_ok=True)
        if damage is not None:
            write(path, damage(content))

    in_a_copy(whole, tmp_path, change)


SETTINGS = {
    "config.json": ("model_type", "architectures", "vocab_size", "n_embd", "n_layer", "n_head", "n_positions",
                    "eos_token_id", "pad_token_id", "bos_token_id", "dtype", "auto_map", "quantization_config",
                    "tie_word_embeddings", "activation_function", "use_cache"),
    "tokenizer_config.json": ("tokenizer_class", "eos_token", "pad_token", "bos_token", "model_max_length",
                              "add_bos_token", "added_tokens_decoder", "auto_map", "chat_template",
                              "extra_special_tokens", "padding_side"),
    "generation_config.json": ("eos_token_id", "do_sample", "temperature", "max_length", "pad_token_id", "num_beams"),
    "tokenizer.json": ("version", "model", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder"),
}  # fmt: skip
SETTING = st.sampled_from([(file, key) for file, keys in SETTINGS.items() for key in keys])
ODD_VALUES = JSON | st.sampled_from([-1, 0, 1, 279, 280, 10**9, [0, 5], [], "llama", "gpt2", "bert", "mamba", "none",
    "<|endoftext|>", "missing", "PreTrainedTokenizerFast", "LlamaTokenizer", "float32", {"AutoConfig": "code.Config"},
    {"quant_method": "awq"}, {"quant_method": "bitsandbytes", "load_in_4bit": True}, "{{ messages", 1e30])  # fmt: skip


@cases(few=60, full=1500)
@given(st.lists(st.tuples(SETTING, ODD_VALUES), min_size=1, max_size=3))
def test_model_folders_with_odd_settings(whole: Path, tmp_path: Path, changes: list[Any]) -> None:
    def change(model: Path) -> None:
        for (name, key), value in changes:
            path = model / name
            settings = json.loads(path.read_text(encoding="utf-8"))
            write(path, json.dumps(settings | {key: value}).encode())

    in_a_copy(whole, tmp_path, change)


# Chats.

TEXTS = st.sampled_from(["", " ", "hello", "caf\xe9 \u2028", "<|endoftext|>", "{{ eos_token }}", "\ud800"]) | st.text(
    max_size=10
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool", "developer", ""]) | JSON, "content": TEXTS | JSON},
    optional={"tool_calls": st.none() | JSON, "name": JSON, "reasoning_content": JSON},
)
ROW = st.fixed_dictionaries(
    {}, optional={"messages": st.lists(MESSAGE, max_size=4), "prompt": TEXTS | st.lists(MESSAGE, max_size=3),
                  "response": TEXTS, "completion": TEXTS | st.lists(MESSAGE, max_size=2),
                  "chosen": st.lists(MESSAGE, max_size=2), "rejected": st.lists(MESSAGE, max_size=2),
                  "tools": st.none() | JSON})  # fmt: skip


def chat(question: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "an answer"}]}


@cases(few=60, full=1200)
@given(st.sampled_from(sorted(TEMPLATES)), st.lists(ROW, min_size=1, max_size=3))
def test_chats(whole: Path, tmp_path: Path, template: str, odd: list[Any]) -> None:
    model = tmp_path / "model"
    if not model.is_dir():
        shutil.copytree(whole, model)
    write(model / "chat_template.jinja", TEMPLATES[template].encode())
    rows = [*(chat(f"question {row}") for row in range(30)), *odd]
    path = write(tmp_path / "chats.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    refused_or_done(lambda: prepare(model, path, tmp_path / "cache"))
