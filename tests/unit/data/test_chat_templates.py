"""For each chat template that TRL ships, rollouts that repeat the demonstrations are identical to them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken
from transformers import GPT2Config, PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from rlgaf_ray.config.rows import JsonlSettings
from rlgaf_ray.config.task import TaskSection
from rlgaf_ray.data.collate import collate_sequences
from rlgaf_ray.data.lengths import View, match_lengths
from rlgaf_ray.data.pairs import PARTS, PairTask
from rlgaf_ray.data.rows import jsonl_source
from rlgaf_ray.engines.transformers import TransformersEngine
from rlgaf_ray.errors import UserError
from rlgaf_ray.models.ends import merged
from rlgaf_ray.models.tokenizer import train_bpe
from rlgaf_ray.types import Prompt, Rollout, SamplingSettings

FOLDER = files("trl").joinpath("chat_templates")
TEMPLATES = {path.name[:-6]: path for path in FOLDER.iterdir() if path.name.endswith(".jinja")}
BOS, EOS = "<BOS>", "<EOS>"
CONTROL = re.compile(r"<[^<>\s]{1,40}>|\[/?[A-Za-z_]{2,}\]")
TEXT = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
)  # as in published tokenizers: added tokens that are not special
ROWS = 10
RESPONSE_TOKENS = 60
NOW = datetime(2026, 11, 30)  # the date that templates show


def chat(number: int, *, system: bool, turns: int) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": "Answer in one word."}] if system else []
    for turn in range(turns):
        messages.append({"role": "user", "content": f"What is {number} plus {turn}?\n\nSay  it."})
        messages.append({"role": "assistant", "content": f"It is {number + turn}"})
    return messages


def in_parts(messages: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
    """Convert contents to lists of parts, as some vision models' templates need."""
    return [{**item, "content": [{"type": "text", "text": item["content"]}]} for item in messages]


SHAPES = [(system, turns) for system in (False, True) for turns in (1, 3)]
CASES = [*((*shape, "last") for shape in SHAPES), (False, 3, "all"), (True, 3, "all")]


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE with the template's control tokens, in order of first use."""
    template = TEMPLATES[name].read_text(encoding="utf-8")
    written = [BOS, EOS]
    for system, turns in SHAPES:
        messages: Any = chat(1, system=system, turns=turns)
        for content in (
            messages,
            [{**item, "content": [{"type": "text", "text": item["content"]}]} for item in messages],
        ):
            try:
                whole = render_jinja_template([content], chat_template=template, bos_token=BOS, eos_token=EOS)[0][0]
                asked = render_jinja_template(
                    [content[:-1]], chat_template=template, bos_token=BOS, eos_token=EOS, add_generation_prompt=True
                )[0][0]
            except Exception:
                continue
            written += CONTROL.findall(whole + asked)
    bpe = train_bpe([f"{item['content']}\n\nIt is so.\n" for item in chat(7, system=True, turns=9)] * 5, 400)
    controls = dict.fromkeys(written)
    bpe.add_tokens([AddedToken(each, special=each not in TEXT, normalized=False) for each in controls])
    bpe.add_special_tokens([AddedToken(each, special=True, normalized=False) for each in controls if each not in TEXT])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=BOS, eos_token=EOS, pad_token=EOS)
    tokenizer.chat_template = template
    return tokenizer


def task_of(
    name: str, folder: Path, rows: Sequence[dict[str, Any]], *, ends: Sequence[int] | None = None, **settings: Any
) -> PairTask:
    path = folder / "chats.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    section = TaskSection(
        name="jsonl",
        prompt_tokens=4000,
        response_tokens=RESPONSE_TOKENS,
        date=NOW.isoformat(),
        jsonl=JsonlSettings(path=str(path), **settings),
    )
    tokenizer = tokenizer_of(name)
    source = jsonl_source(section, base=False).with_ends([tokenizer.eos_token_id] if ends is None else ends)
    return source.tokenized(tokenizer, folder)


def repeated(task: PairTask, ends: Sequence[int]) -> tuple[list, list[Rollout]]:
    """Return all demonstrations, and rollouts of a generator that repeats them with certainty."""
    items = [item for part in PARTS for item in task._parts[part]]
    vocabulary = 1 + max(int(ids.max()) for item in items for ids in (item.prompt_ids, item.response_ids))
    step = 0

    def certain(*, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        nonlocal step
        logits = torch.full((len(items), 1, vocabulary), -1e4)
        for row, item in enumerate(items):
            known = item.response_ids
            assert step == 0 or step > len(known) or int(input_ids[row, -1]) == known[step - 1]
            logits[row, 0, int(known[step]) if step < len(known) else 0] = 1e4
        step += 1
        return SimpleNamespace(logits=logits)

    class Certain:
        config = GPT2Config(n_positions=8192)
        device = torch.device("cpu")
        __call__ = staticmethod(certain)

    engine = TransformersEngine.__new__(TransformersEngine)
    engine._model, engine._name = Certain(), "a generator that repeats"  # type: ignore[assignment]
    engine._end_of_text_ids, engine.policy_version = list(ends), 0
    prompts = [Prompt(prompt_id=row, token_ids=item.prompt_ids) for row, item in enumerate(items)]
    sampling = SamplingSettings(max_new_tokens=RESPONSE_TOKENS, samples_per_prompt=1)
    return items, engine.generate(prompts, sampling, seeds=list(range(len(items))))


def check_alike(task: PairTask, tokenizer: PreTrainedTokenizerFast) -> None:
    ends = merged(tokenizer.eos_token_id, task.end_ids)
    items, rollouts = repeated(task, ends)
    assert {rollout.finish_reason for rollout in rollouts} == {"stop"}
    real, fake = (collate_sequences(each, tokenizer.pad_token_id) for each in (items, rollouts))
    for field in ("token_ids", "attention_mask", "response_mask"):
        assert torch.equal(getattr(real, field), getattr(fake, field)), field
    for view in (View(), View(ends), View(ends, last_tokens=3)):
        for kinds in ((view.read(items), view.read(rollouts)), match_lengths(items, rollouts, view=view)):
            for one, other in zip(*kinds, strict=True):
                assert np.array_equal(one.prompt_ids, other.prompt_ids)
                assert np.array_equal(one.response_ids, other.response_ids)


def refusal(name: str, messages: list[dict[str, str]]) -> str | None:
    """Return why a template is unusable, computed only with transformers; None if it is usable."""
    tokenizer = tokenizer_of(name)
    for parts in (False, True):
        given: Any = in_parts(messages) if parts else messages
        try:
            prompt = tokenizer.apply_chat_template(given[:-1], tokenize=False, add_generation_prompt=True)
            whole = tokenizer.apply_chat_template(given, tokenize=False)
        except Exception as error:
            reason = str(error)
            continue
        if not all(item["content"].strip() in whole for item in messages):
            reason = "leaves out"
            continue
        return None if str(whole).startswith(str(prompt)) else "prefix"
    return reason


@pytest.mark.parametrize(("system", "turns", "train"), CASES)
@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_rollouts_that_repeat_demonstrations_are_identical_to_them(
    name: str, system: bool, turns: int, train: str, tmp_path: Path
) -> None:
    tokenizer = tokenizer_of(name)
    rows = [{"messages": chat(number, system=system, turns=turns)} for number in range(ROWS)]
    places = range(2 * turns + system, system, -2) if train == "all" else [2 * turns + system]
    why = [reason for place in places if (reason := refusal(name, rows[0]["messages"][:place]))]
    if why:
        with pytest.raises(UserError, match=r"line 1: the chat template (rejects|leaves out|does not write)"):
            task_of(name, tmp_path, rows, messages_train=train)
        return
    task = task_of(name, tmp_path, rows, messages_train=train)
    assert sum(len(items) for items in task._parts.values()) == ROWS * (turns if train == "all" else 1)
    check_alike(task, tokenizer)
    for part in PARTS:
        for item, pair in zip(task._parts[part], task._pairs[part], strict=True):
            assert {pair.response} == set(pair.references) and pair.response.startswith("It is ")
            messages = [*json.loads(pair.after), {"role": "assistant", "content": pair.response}]
            if "probe" not in tokenizer.apply_chat_template([{"role": "user", "content": "probe"}], tokenize=False):
                messages = in_parts(messages)
            shown: dict[str, Any] = {"return_dict": False, "strftime_now": NOW.strftime}
            prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, **shown)
            whole: Any = tokenizer.apply_chat_template(messages, **shown)
            assert item.prompt_ids.tolist() == prompt
            ids = [*item.prompt_ids.tolist(), *item.response_ids.tolist()]
            if whole[: len(prompt)] == prompt and whole[len(prompt) :].count(ids[-1]):
                assert whole[: len(ids)] == ids


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_known_templates_are_supported_or_rejected(name: str) -> None:
    """Templates that are new in TRL may be either."""
    refused = refusal(name, chat(1, system=False, turns=1)) is not None
    if name.startswith(("cohere", "gemma", "gptoss", "llama", "phi", "qwen", "smol", "lfm", "glm", "idefics", "llava")):
        assert not refused
    if name.startswith(("deepseek", "nemotron")):
        assert refused


@pytest.mark.parametrize(
    ("name", "ends", "settings", "prompt", "response"),
    [
        ("llama3", ["<|eot_id|>"], {}, "<|end_header_id|>\n\n", "It is 8<|eot_id|>"),
        ("phi3", [EOS, "<|end|>"], {}, "<|end|>\n<|assistant|>\n", "It is 8<|end|>"),
        ("phi3", [EOS], {}, "<|end|>\n<|assistant|>\n", "It is 8<|end|>\n<EOS>"),
        ("cohere2", ["<|END_OF_TURN_TOKEN|>"], {}, "SPONSE|>", "It is 8<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"),
        ("gptoss", ["<|return|>"], {}, "<|start|>assistant", "<|channel|>final<|message|>It is 8<|return|>"),
        ("gemma", [EOS], {}, "<start_of_turn>model\n", "It is 8<end_of_turn>"),
        ("glm4moe", ["<|user|>"], {}, "<|assistant|>", "\n<think></think>\nIt is 8<|user|>"),
        ("qwen3", ["<|im_end|>"], {}, "<|im_start|>assistant\n", "<think>\n\n</think>\n\nIt is 8<|im_end|>"),
        ("qwen3", ["<|im_end|>"], {"enable_thinking": False}, "<think>\n\n</think>\n\n", "It is 8<|im_end|>"),
        ("qwen3_5_think", ["<|im_end|>"], {}, "<think>\n", "\n</think>\n\nIt is 8<|im_end|>"),
        ("nemotron_3_nano", ["<|im_end|>"], {"enable_thinking": False}, "<think></think>", "It is 8<|im_end|>"),
        ("smolvlm", [EOS], {}, "<end_of_utterance>\nAssistant:", " It is 8<end_of_utterance>"),
    ],
)  # fmt: skip
def test_the_response_ends_with_the_end_token(
    name: str, ends: list[str], settings: dict[str, Any], prompt: str, response: str, tmp_path: Path
) -> None:
    tokenizer = tokenizer_of(name)
    rows = [{"messages": chat(number, system=False, turns=1)} for number in range(ROWS)]
    known = [tokenizer.get_vocab()[each] for each in ends]
    task = task_of(name, tmp_path, rows, ends=known, chat_template_kwargs=settings)
    (item,) = (item for item in task.demonstrations if " 8 " in str(tokenizer.decode(item.prompt_ids.tolist())))
    assert str(tokenizer.decode(item.prompt_ids.tolist())).endswith(prompt)
    assert tokenizer.decode(item.response_ids.tolist()) == response
    check_alike(task, tokenizer)


@pytest.mark.parametrize(
    ("name", "ends", "prompt", "response"),
    [
        ("qwen3", ["<|im_end|>"], "assistant\n", "<think>\nAdd.\n</think>\n\nIt is 8<|im_end|>"),
        ("qwen3_5_think", ["<|im_end|>"], "<think>\n", "Add.\n</think>\n\nIt is 8<|im_end|>"),
        ("nemotron_3_nano", ["<|im_end|>"], "<think>\n", "Add.\n</think>\nIt is 8<|im_end|>"),
        ("glm4moe", ["<|user|>"], "<|assistant|>", "\n<think>Add.</think>\nIt is 8<|user|>"),
    ],
)
def test_reasoning_is_part_of_the_response(
    name: str, ends: list[str], prompt: str, response: str, tmp_path: Path
) -> None:
    tokenizer = tokenizer_of(name)
    rows: list[dict[str, Any]] = [{"messages": chat(number, system=False, turns=1)} for number in range(ROWS)]
    for row in rows:
        row["messages"][-1]["reasoning_content"] = "Add."
    task = task_of(name, tmp_path, rows, ends=[tokenizer.get_vocab()[each] for each in ends])
    (item,) = (item for item in task.demonstrations if " 8 " in str(tokenizer.decode(item.prompt_ids.tolist())))
    assert str(tokenizer.decode(item.prompt_ids.tolist())).endswith(prompt)
    assert tokenizer.decode(item.response_ids.tolist()) == response
    check_alike(task, tokenizer)


@pytest.mark.parametrize(
    ("name", "response"),
    [
        ("llama3", None),
        ("phi3_5", None),
        ("llama3_1", '{"name": "double", "parameters": {"a": 8}}<|eot_id|>'),
        ("lfm2_v2", "<|tool_call_start|>[double(a=8)]<|tool_call_end|><|im_end|>"),
    ],
)
def test_a_call_is_the_response_where_the_template_shows_it(name: str, response: str | None, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(name)
    tools = [{"type": "function", "function": {"name": "double", "description": "", "parameters": {}}}]
    rows: list[dict[str, Any]] = [{"messages": chat(number, system=False, turns=1)} for number in range(ROWS)]
    for number, row in enumerate(rows):
        call = {"type": "function", "function": {"name": "double", "arguments": {"a": number}}}
        row["messages"][-1] = {"role": "assistant", "content": "", "tool_calls": [call]}
    if response is None:
        with pytest.raises(UserError, match="line 1: the chat template leaves out a call of the tool 'double'"):
            task_of(name, tmp_path, rows, tools=tools)
        return
    task = task_of(name, tmp_path, rows, tools=tools)
    (item,) = (item for item in task.demonstrations if " 8 " in str(tokenizer.decode(item.prompt_ids.tolist())))
    assert tokenizer.decode(item.response_ids.tolist()) == response


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("deepseek_r1_distill", ""),
        (
            "nemotron_3_nano",
            "set chat_template_kwargs={enable_thinking: false}, or give the message its reasoning_content, or ",
        ),
    ],
)
def test_the_advice_for_an_open_thinking_block_fits_the_template(name: str, advice: str, tmp_path: Path) -> None:
    rows = [{"messages": chat(number, system=False, turns=1)} for number in range(ROWS)]
    always = "edit chat_template in a copy of the model's folder, or give rows of plain prompt and completion"
    with pytest.raises(UserError, match=rf"which ends with '[^']*<think>\\n': {re.escape(advice + always)}$"):
        task_of(name, tmp_path, rows)


def test_an_edited_template_without_the_thinking_block_works(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("deepseek_r1_distill")
    original = tokenizer.chat_template
    tokenizer.chat_template = str(original).replace("<think>\\n'}}", "'}}")
    try:
        rows = [{"messages": chat(number, system=False, turns=1)} for number in range(ROWS)]
        task = task_of("deepseek_r1_distill", tmp_path, rows)
    finally:
        tokenizer.chat_template = original
    responses = {str(tokenizer.decode(item.response_ids.tolist())) for item in task.demonstrations}
    assert all(response.startswith("It is ") and len(response) > len("It is 1") for response in responses)
