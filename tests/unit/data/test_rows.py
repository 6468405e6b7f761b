from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from rlgaf_ray.config.rows import JsonlSettings
from rlgaf_ray.config.task import TaskSection
from rlgaf_ray.data.rows import hub_source, jsonl_source
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


def test_plain_rows_are_tokenised(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {number}?", "response": f" answer {number}"} for number in range(30)]
    task = jsonl_source(jsonl(tmp_path, rows), base=True).tokenized(tokenizer, tmp_path)
    assert not task.chats
    texts = {tokenizer.decode([*item.prompt_ids, *item.response_ids]) for item in task.demonstrations}
    assert texts <= {f"Question {number}? answer {number}{tokenizer.eos_token}" for number in range(30)}
    assert len(texts) == 10


@pytest.mark.parametrize("keep", [True, False])
def test_keep_rows_keeps_columns_for_reward_functions(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, keep: bool
) -> None:
    """Rows have the prompt as text or messages, and do not enter the checksum."""
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
def test_chats_are_rendered_by_the_tokenizers_template(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, shape: str
) -> None:
    def row(number: int) -> dict:
        asked, answer = {"role": "user", "content": f"Question {number}?"}, f"answer {number}"
        if shape == "prompt":
            return {"prompt": [asked], "response": answer}
        return {"messages": [asked, {"role": "assistant", "content": answer}]}

    source = jsonl_source(jsonl(tmp_path, [row(number) for number in range(30)]), base=True, keep_rows=True)
    with pytest.raises(UserError, match="the tokenizer has no chat template: use a chat model, or give plain prompt"):
        source.tokenized(tokenizer, tmp_path)
    chat = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token=tokenizer.eos_token)
    chat.chat_template = TEMPLATE
    task = source.tokenized(chat, tmp_path)
    assert task.chats
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


PREFERENCES = [
    {"prompt": f"Question {number}?", "chosen": f" answer {number}", "rejected": f" nothing {number}"}
    for number in range(30)
]


def test_rejected_answers_are_the_contrast(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    task = jsonl_source(jsonl(tmp_path, PREFERENCES), base=True).tokenized(tokenizer, tmp_path)
    assert len(task.contrast) == len(task.demonstrations) == 10
    for item, wrong in zip(task.demonstrations, task.contrast, strict=True):
        number = str(tokenizer.decode(item.prompt_ids)).removeprefix("Question ").removesuffix("?")
        assert tokenizer.decode(item.response_ids) == f" answer {number}{tokenizer.eos_token}"
        assert tokenizer.decode(wrong.prompt_ids) == f"Question {number}?"
        assert tokenizer.decode(wrong.response_ids) == f" nothing {number}{tokenizer.eos_token}"
    items, labels = task.discriminator_warmup()
    texts = [str(tokenizer.decode(item.response_ids)) for item in items]
    assert [text.startswith(" answer") for text in texts] == labels.astype(bool).tolist()
    assert task.unwanted == "rejected answers"
    assert task.counts.rejected == len(task.demonstrations)
    changed = [row | {"rejected": " other"} for row in PREFERENCES]
    assert task.checksum != jsonl_source(jsonl(tmp_path, changed), base=True).tokenized(tokenizer, tmp_path).checksum


def test_no_demonstration_is_contrast(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """Prompts with several demonstrations have answers to other prompts as contrast."""
    rows = [{"prompt": f"Question {row // 3}?", "response": f" answer {row}"} for row in range(90)]
    task = jsonl_source(jsonl(tmp_path, rows), base=True).tokenized(tokenizer, tmp_path)
    warmup, labels = task.discriminator_warmup()
    real = [item for item, label in zip(warmup, labels, strict=True) if label]
    for items, contrast in ((task.demonstrations, task.contrast), (real, warmup[len(real) :])):
        known = {(item.prompt_ids.tobytes(), item.response_ids.tobytes()) for item in items}
        found = [(item.prompt_ids.tobytes(), item.response_ids.tobytes()) for item in contrast]
        assert len(found) == len(items) and not known & set(found)


def test_rows_without_a_rejected_answer_use_other_answers(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """Rows whose rejected answer is too long or equals the chosen one have no contrast, and are reported."""
    rows: list[dict[str, Any]] = [dict(row) for row in PREFERENCES]
    for number in range(0, 30, 3):
        rows[number]["rejected"] = None
        rows[number + 1]["rejected"] = rows[number + 1]["chosen"] if number % 2 else " far too long" * 20
    task = jsonl_source(jsonl(tmp_path, rows), base=False).tokenized(tokenizer, tmp_path)
    found = {str(tokenizer.decode(item.prompt_ids)): str(tokenizer.decode(item.response_ids)) for item in task.contrast}
    for item in task.demonstrations:
        prompt = str(tokenizer.decode(item.prompt_ids))
        number = int(prompt.removeprefix("Question ").removesuffix("?"))
        match number % 3:
            case 0:
                assert found[prompt].startswith(" answer ") and f" {number}{tokenizer.eos_token}" not in found[prompt]
            case 1:
                assert prompt not in found
            case 2:
                assert found[prompt] == f" nothing {number}{tokenizer.eos_token}"
    assert task.unwanted == "rejected answers and answers to other prompts"
    sentence = task.counts.sentence()
    assert "rejected answers that equal the wanted one, left out: " in sentence
    assert "rejected answers with a response longer than task.response_tokens=30, left out: " in sentence


def with_files(folder: Path, **files: list[dict]) -> TaskSection:
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    names = {"path" if name == "train" else f"{name}_path": str(folder / f"{name}.jsonl") for name in files}
    return TaskSection(name="jsonl", prompt_tokens=60, response_tokens=30, jsonl=JsonlSettings.model_validate(names))


def rows_of(*numbers: int) -> list[dict]:
    return [{"prompt": f"Question {number}?", "completion": f" answer {number}"} for number in numbers]


def test_parts_can_have_their_own_files(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """They are used completely and in order; shares apply to the other parts, and overlap is reported."""
    task = with_files(
        tmp_path, train=rows_of(*range(90)), validation=rows_of(100, 101, 5, 6), test=rows_of(200, 100, 7)
    )
    made = jsonl_source(task, base=True).tokenized(tokenizer, tmp_path)
    assert [pair.response for pair in made.evaluation_pairs("validation")] == [f" answer {n}" for n in (100, 101, 5, 6)]
    assert [pair.response for pair in made.evaluation_pairs("test")] == [f" answer {n}" for n in (200, 100, 7)]
    assert made.counts.used == {"base": 51, "demonstrations": 39, "validation": 4, "test": 3}
    assert made.counts.sentence() == (
        "rows that repeat an earlier one: 4; "
        "prompts of the part validation (of 4) that are also in the rows for training: 2; "
        "prompts of the part test (of 3) that are also in the rows for training: 1; "
        "prompts of the part test (of 3) that are also in the part validation: 1"
    )
    made = jsonl_source(with_files(tmp_path, train=rows_of(*range(90)), test=rows_of(200)), base=False).tokenized(
        tokenizer, tmp_path
    )
    assert made.counts.used == {"base": 0, "demonstrations": 80, "validation": 10, "test": 1}
    assert made.counts.sentence() == ""


def test_dropped_rows_are_counted_and_raise_above_a_share(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows = [{"prompt": "word " * (300 if row % 10 else 2) + f"{row}?", "response": " it is"} for row in range(400)]
    task = jsonl(tmp_path, rows)
    source = jsonl_source(task, base=True)
    with pytest.raises(
        UserError,
        match=r"^360 of 400 rows \(90%\) left out: 360 with a prompt longer than task.prompt_tokens=60",
    ):
        source.tokenized(tokenizer, tmp_path)
    task.max_dropped_share = 0.9
    counts = source.tokenized(tokenizer, tmp_path).counts
    assert counts.sentence().startswith("360 of 400 rows (90%) left out: 360 with a prompt longer than task.prompt")
    assert sum(counts.used.values()) == 40
    rows = [{"prompt": "" if row < 3 else f"{row}?", "response": " it " * (40 * (row == 9))} for row in range(40)]
    assert jsonl_source(jsonl(tmp_path, rows), base=True).tokenized(tokenizer, tmp_path).counts.reasons == {
        "without a prompt": 3,
        "with a response longer than task.response_tokens=30": 1,
    }


def test_repeated_rows_and_empty_answers_are_reported(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows = [{"prompt": f"{row % 20}?", "response": "" if row < 5 else " yes"} for row in range(40)]
    sentence = jsonl_source(jsonl(tmp_path, rows), base=True).tokenized(tokenizer, tmp_path).counts.sentence()
    assert sentence == "rows that repeat an earlier one: 15; rows with an empty response: 5"


def test_errors_name_file_and_line(tmp_path: Path) -> None:
    task = with_files(tmp_path, train=rows_of(*range(9)), test=[*rows_of(1), {"prompt": "a", "completion": 4}])
    with pytest.raises(UserError, match=r"test\.jsonl, line 2: completion is 4 \(int\): write text"):
        jsonl_source(task, base=True)
    task.jsonl.test_path = str(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match=r"^task.jsonl.test_path=.*none.jsonl does not exist"):
        jsonl_source(task, base=True)


def hub(folder: Path, **settings: str) -> TaskSection:
    values = {"dataset": str(folder), **settings}
    return TaskSection.model_validate({"name": "hub", "prompt_tokens": 60, "response_tokens": 30, "hub": values})


@pytest.fixture
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hub"))


@pytest.mark.usefixtures("own_cache")
def test_dataset_splits(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    with_files(folder, train=rows_of(*range(40)), validation=rows_of(50, 51), test=rows_of(60))
    made = hub_source(hub(folder, validation_split="validation", test_split="test"), base=False).tokenized(
        tokenizer, tmp_path
    )
    assert made.counts.used == {"base": 0, "demonstrations": 40, "validation": 2, "test": 1}
    with pytest.raises(UserError, match=r'task.hub.test_split: cannot load .* Unknown split "dev"'):
        hub_source(hub(folder, test_split="dev"), base=False)


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.jsonl", '{"prompt": "a", "response": "b"}\n{broken\n', "cannot load .* JSON"),
        ("set.py", "# a loading script of old", "Dataset scripts are no longer supported|any.* data"),
        ("train.jsonl", '{"prompt": "a", "response": 4}\n', r"\(train\), row 1: response is 4 \(int\)"),
    ],
)
def test_an_unreadable_dataset_raises(tmp_path: Path, name: str, content: str, message: str) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        hub_source(hub(folder), base=False)
    assert "\n" not in str(caught.value)
