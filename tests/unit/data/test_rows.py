from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from rlgaf_ray.config.task import JsonlSettings, TaskSection
from rlgaf_ray.data.rows import jsonl_source, prompt_and_response, read_jsonl
from rlgaf_ray.errors import UserError

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token if m.role == 'assistant' }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def jsonl(folder: Path, rows: list[dict]) -> TaskSection:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    return TaskSection(
        name="jsonl", prompt_tokens=60, response_tokens=30, jsonl=JsonlSettings(path=str(path), warmup_loss="response")
    )


def test_plain_prompts_and_responses(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {number}?", "response": f" answer {number}"} for number in range(30)]
    task = jsonl_source(jsonl(tmp_path, rows), base=True).tokenized(tokenizer, tmp_path)
    texts = {tokenizer.decode([*item.prompt_ids, *item.response_ids]) for item in task.demonstrations}
    assert texts <= {f"Question {number}? answer {number}{tokenizer.eos_token}" for number in range(30)}
    assert len(texts) == 10


@pytest.mark.parametrize("keep", [True, False])
def test_rows_are_kept_for_reward_functions_when_asked_for(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, keep: bool
) -> None:
    """With the prompt as text or messages, and no part of the checksum."""
    rows = [
        {"prompt": f"Question {number}?", "response": f" answer {number}", "number": number} for number in range(30)
    ]
    source = jsonl_source(jsonl(tmp_path, rows), base=True, keep_rows=keep)
    task = source.tokenized(tokenizer, tmp_path)
    assert len(task.rows) == len(task.demonstrations)
    for item, row in zip(task.demonstrations, task.rows, strict=True):
        if keep:
            assert tokenizer.decode(item.prompt_ids) == f"Question {row['number']}?" == row["prompt"]
            assert row == rows[row["number"]]
        else:
            assert row == {}
    assert task.checksum == jsonl_source(jsonl(tmp_path, rows), base=True).tokenized(tokenizer, tmp_path).checksum


@pytest.mark.parametrize("shape", ["messages", "prompt"])
def test_chats_go_through_the_tokenizers_template(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, shape: str
) -> None:
    def row(number: int) -> dict:
        asked, answer = {"role": "user", "content": f"Question {number}?"}, f"answer {number}"
        if shape == "prompt":
            return {"prompt": [asked], "response": answer}
        return {"messages": [asked, {"role": "assistant", "content": answer}]}

    source = jsonl_source(jsonl(tmp_path, [row(number) for number in range(30)]), base=True, keep_rows=True)
    with pytest.raises(UserError, match="the tokenizer has no chat template: take a chat model, or give plain prompt"):
        source.tokenized(tokenizer, tmp_path)
    chat = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token=tokenizer.eos_token)
    chat.chat_template = TEMPLATE
    task = source.tokenized(chat, tmp_path)
    for item, pair in zip(task.evaluation("test"), task.evaluation_pairs("test"), strict=True):
        number = pair.references[0].split()[1]
        assert chat.decode(item.prompt_ids.tolist()) == f"[user] Question {number}?\n[assistant] "
        assert chat.decode(item.response_ids.tolist()) == f"answer {number}{chat.eos_token}"
    assert all(
        f"[user] {row['prompt'][0]['content']}\n[assistant] " == chat.decode(item.prompt_ids.tolist())
        for item, row in zip(task.demonstrations, task.rows, strict=True)
    )
    blocks = task.warmup_blocks(8)
    learned = str(chat.decode(blocks.token_ids[0, blocks.learned[0]].tolist()))
    assert learned.startswith("answer ")
    assert learned.endswith(chat.eos_token)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, "row 7 has no prompt .* with a response"),
        ({"prompt": 3, "response": "b"}, "row 7 has no prompt"),
        ({"prompt": "a", "response": None}, "row 7 has no prompt"),
        ({"messages": [{"role": "user", "content": "a"}]}, "row 7: messages must be a list"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}, "the last of role assis"),
    ],
)
def test_a_row_that_is_no_demonstration_is_named(row: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prompt_and_response(row, JsonlSettings(), 7)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "line 1 is no JSON"),
        (b'{"a": 1}\n[2]', "line 2 is no JSON object"),
        (b"\n\n", "is empty"),
        (b"\xff", r"is not UTF-8 \(byte 0\)"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_jsonl(path)
    with pytest.raises(UserError, match="does not exist"):
        read_jsonl(tmp_path / "none.jsonl")
