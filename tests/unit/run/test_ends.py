"""The end tokens agree between demonstrations, engines, masks and exported files."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from rlgaf_ray.actors.warmup import Warmups, prepare_warmups
from rlgaf_ray.config import Config, load_config
from rlgaf_ray.engines.transformers import TransformersEngine
from rlgaf_ray.loop.callback import Callback
from rlgaf_ray.models.tokenizer import train_bpe
from rlgaf_ray.run.preparation import Data, notes_on_ends, prepare_data, with_date
from rlgaf_ray.run.train import train
from rlgaf_ray.types import Demonstration, Prompt, SamplingSettings

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("</s>", "<|im_start|>", "<|im_end|>")
Prepare = Callable[..., tuple[Config, Data, Warmups]]


def model_folder(path: Path, *, tokenizer_end: str, config_end: str) -> Path:
    bpe = train_bpe([f"user assistant What is {number}? It is {number}.\n" for number in range(50)], 320)
    bpe.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=tokenizer_end, pad_token="</s>")
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(path)
    shape = GPT2Config(vocab_size=len(tokenizer), n_positions=128, n_embd=16, n_layer=1, n_head=2)
    shape.bos_token_id = shape.pad_token_id = bpe.token_to_id("</s>")
    shape.eos_token_id = bpe.token_to_id(config_end)
    GPT2LMHeadModel(shape).save_pretrained(path)
    return path


@pytest.fixture
def prepare(tmp_path: Path) -> Prepare:
    def make(folder: Path, rows: list[dict]) -> tuple[Config, Data, Warmups]:
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        config = load_config(
            None,
            [
                f"model.generator={folder}",
                "task.name=jsonl",
                f"task.jsonl.path={tmp_path / 'rows.jsonl'}",
                "task.prompt_tokens=60",
                "task.response_tokens=30",
                "warmup.generator.steps=0",
                "warmup.sft.steps=2",
                "warmup.discriminator.steps=0",
            ],
        )
        data = prepare_data(config, tmp_path / "cache")
        made = prepare_warmups(config, data.task, data.tokenizer, tmp_path / "cache", lambda *_: None, with_ray=False)
        return config, data, made

    return make


def chats() -> list[dict]:
    asked = [{"role": "user", "content": f"What is {number}?"} for number in range(20)]
    return [{"messages": [each, {"role": "assistant", "content": "It is so."}]} for each in asked]


@pytest.mark.parametrize(
    ("tokenizer_end", "config_end", "warned"),
    [("<|im_end|>", "</s>", False), ("</s>", "<|im_end|>", False), ("</s>", "</s>", True)],
)
def test_rollouts_end_like_the_demonstrations(
    tokenizer_end: str, config_end: str, warned: bool, prepare: Prepare, tmp_path: Path
) -> None:
    """Tokenizer and config may name different end tokens, or neither the one that the chat template writes."""
    folder = model_folder(tmp_path / "model", tokenizer_end=tokenizer_end, config_end=config_end)
    _, data, warmups = prepare(folder, chats())
    end, other = (data.tokenizer.convert_tokens_to_ids(name) for name in ("<|im_end|>", "</s>"))
    assert {int(item.response_ids[-1]) for item in data.task.demonstrations} == {end}
    assert all(end not in item.response_ids[:-1] for item in data.task.demonstrations)
    assert [note for note in data.notes if f"end with '<|im_end|>' (token {end})" in note] == list(data.notes)
    assert bool(data.notes) is warned

    for made in (warmups.base, warmups.generator, warmups.discriminator):
        config = json.loads((made / "config.json").read_text())
        assert set(config["eos_token_id"]) == {end, other}
    assert set(json.loads((warmups.generator / "generation_config.json").read_text())["eos_token_id"]) == {end, other}
    engine = TransformersEngine(warmups.generator)
    assert set(engine._end_of_text_ids) == {end, other}

    with torch.no_grad():  # a generator that only emits the template's end token
        network: Any = engine._model
        last, rows = network.transformer.ln_f, network.lm_head.weight
        rows[end] *= 100
        last.weight.zero_()
        last.bias.copy_(rows[end])
    prompts = [Prompt(prompt_id=0, token_ids=data.task.demonstrations[0].prompt_ids)]
    sampling = SamplingSettings(max_new_tokens=9, samples_per_prompt=1)
    (rollout,) = engine.generate(prompts, sampling, seeds=[0])
    assert rollout.response_ids.tolist() == [end] and rollout.finish_reason == "stop"


def test_plain_rows_end_with_the_tokenizers_eos(prepare: Prepare, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", tokenizer_end="<|im_end|>", config_end="</s>")
    rows = [{"prompt": f"What is {number}?", "response": " It is so."} for number in range(20)]
    _, data, warmups = prepare(folder, rows)
    end, other = (data.tokenizer.convert_tokens_to_ids(name) for name in ("<|im_end|>", "</s>"))
    assert {int(item.response_ids[-1]) for item in data.task.demonstrations} == {end}
    assert TransformersEngine(warmups.generator)._end_of_text_ids == [end, other]
    assert data.notes == []


def test_demonstrations_with_an_inner_end_token_are_reported(prepare: Prepare, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", tokenizer_end="<|im_end|>", config_end="</s>")
    _, data, _ = prepare(folder, chats())
    end = data.tokenizer.eos_token_id
    first = data.task.demonstrations[0]
    data.task.demonstrations[0] = Demonstration(first.prompt_ids, np.array([end, *first.response_ids], np.int32))
    (note,) = notes_on_ends(data.task, [end], data.tokenizer)
    assert note.startswith(f"1 of {len(data.task.demonstrations)} demonstrations contain a token that ends a rollout")


def test_the_date_is_recorded_and_reused(tmp_path: Path) -> None:
    config = load_config(None, [])
    recorded = tmp_path / "config.yaml"
    dated = with_date(config, recorded)
    assert dated.task.date is not None
    assert timedelta(0) <= datetime.now() - datetime.fromisoformat(dated.task.date) < timedelta(minutes=1)
    recorded.write_text("task: {date: '2020-02-29T23:59:00'}")
    assert with_date(config, recorded).task.date == "2020-02-29T23:59:00"
    assert with_date(dated, recorded) == dated


@pytest.mark.slow
def test_a_resumed_run_keeps_its_date(tmp_path: Path) -> None:
    """A resumed run keeps its date even if the new config has none, and finds its warm-ups in the cache."""
    folder = model_folder(tmp_path / "model", tokenizer_end="<|im_end|>", config_end="<|im_end|>")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}\n" + CHATML
    tokenizer.save_pretrained(folder)
    rows = [chat for number in range(5) for chat in chats()]
    for number, row in enumerate(rows):
        row["messages"][0] = {"role": "user", "content": f"What is {number}?"}
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    messages: list[str] = []

    class Messages(Callback):
        def on_message(self, message: str) -> None:
            messages.append(message)

    def run(iterations: int, *more: str, resume: bool = False) -> str | None:
        settings = {
            "run": f"{{root: {tmp_path / 'runs'}, name: dated, iterations: {iterations}}}",
            "model.generator": folder,
            "task.name": "jsonl",
            "task.jsonl.path": tmp_path / "rows.jsonl",
            "task.prompt_tokens": 80,
            "task.response_tokens": 20,
            "warmup": f"{{cache: {tmp_path / 'cache'}, generator: {{steps: 0}}, sft: {{steps: 0}}}}",
            "warmup.discriminator": "{steps: 0}",
            "rollout": "{engine: transformers, batch_size: 8, samples_per_prompt: 4}",
            "discriminator": "{batch_size: 8, contrast_weight: 0}",
            "evaluation": "{num_prompts: 10, num_samples: 2, embeddings: false}",
        }
        config = load_config(None, [*(f"{key}={value}" for key, value in settings.items()), *more])
        train(config, resume=resume, roles="local", callbacks=[Messages()])
        return load_config(tmp_path / "runs" / "dated" / "config.yaml").task.date

    assert run(1, "task.date=2020-02-29") == "2020-02-29"
    messages.clear()
    assert run(2, resume=True) == "2020-02-29"
    assert any(message.startswith("warm-ups from the cache") for message in messages)
    samples = (tmp_path / "runs" / "dated" / "samples.jsonl").read_text()
    assert "29 Feb 2020" in samples
