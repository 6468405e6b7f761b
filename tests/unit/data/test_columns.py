"""Rows in the usual dataset formats, and rows that must be rejected."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rlgaf_ray.config.rows import JsonlSettings
from rlgaf_ray.data.columns import Example, common_beginning, read_example
from rlgaf_ray.errors import UserError

USER, YES, NO = (
    {"role": "user", "content": "Is it?"},
    *({"role": "assistant", "content": text} for text in ("Yes.", "No.")),
)


def parts(*texts: str) -> list[dict[str, Any]]:
    """Return content parts as exported from OpenAI's API, with Parquet's nulls."""
    return [{"type": "text", "text": text, "image_url": None} for text in texts]


MORE = {"role": "user", "content": "Sure?"}


def read(row: dict[str, Any], **columns: str) -> Example:
    return read_example(row, JsonlSettings.model_validate(columns), "a.jsonl, line 7")


@pytest.mark.parametrize(
    ("row", "prompt", "response", "rejected"),
    [
        ({"prompt": "a", "response": " b"}, "a", " b", None),
        ({"prompt": "a", "completion": " b"}, "a", " b", None),
        ({"prompt": "a", "completion": " b", "label": True}, "a", " b", None),
        ({"prompt": "a", "completion": " b", "label": 0}, "a", " b", None),  # an unrelated class label
        ({"question": "a", "answer": "b", "id": 3}, "a", "b", None),
        ({"prompt": "a", "response": "b", "answer": "42"}, "a", "b", None),  # for a reward function
        ({"prompt": "a", "chosen": " b", "rejected": " c"}, "a", " b", ("a", " c")),
        ({"prompt": "a", "chosen": " b", "rejected": None}, "a", " b", None),
        ({"chosen": "It is blue.", "rejected": "It is black."}, "It is", " blue.", ("It is", " black.")),
        (
            {"chosen": "\n\nHuman: Hi\n\nAssistant: I can.", "rejected": "\n\nHuman: Hi\n\nAssistant: I can not."},
            "\n\nHuman: Hi\n\nAssistant:",
            " I can.",
            ("\n\nHuman: Hi\n\nAssistant:", " I can not."),
        ),
        ({"messages": [USER, YES]}, [USER], YES, None),
        ({"messages": [USER, YES], "prompt": "Is it?", "prompt_id": "x"}, [USER], YES, None),  # ultrachat_200k
        ({"messages": [USER, YES], "prompt": None, "response": None}, [USER], YES, None),
        ({"messages": [{**USER, "name": None}, {**YES, "tool_calls": None}]}, [USER], YES, None),
        ({"messages": json.dumps([USER, YES])}, [USER], YES, None),
        ({"conversations": [{"from": "human", "value": "Is it?"}, {"from": "gpt", "value": "No."}]}, [USER], NO, None),
        ({"messages": [{"role": "user", "content": parts("Is", " it?")}, YES]}, [USER], YES, None),
        ({"prompt": [USER], "response": "Yes."}, [USER], YES, None),
        ({"prompt": [USER], "completion": [YES]}, [USER], YES, None),
        ({"prompt": "Is it?", "completion": [YES]}, [USER], YES, None),
        ({"prompt": [USER], "completion": [YES, MORE, NO]}, [USER, YES, MORE], NO, None),
        ({"prompt": [USER], "chosen": [YES], "rejected": [NO]}, [USER], YES, ([USER], NO)),
        ({"prompt": [USER], "chosen": [USER, YES], "rejected": [USER, NO]}, [USER], YES, ([USER], NO)),
        ({"chosen": [USER, YES], "rejected": [USER, NO]}, [USER], YES, ([USER], NO)),
        (  # ultrafeedback_binarized
            {"prompt": "Is it?", "messages": [USER, YES], "chosen": [USER, YES], "rejected": [USER, NO], "score": 8.0},
            [USER],
            YES,
            ([USER], NO),
        ),
        (  # conversations that diverge before the last turn
            {"chosen": [USER, YES, MORE, YES], "rejected": [USER, NO, MORE, NO]},
            [USER, YES, MORE],
            YES,
            ([USER, NO, MORE], NO),
        ),
    ],
)  # fmt: skip
def test_usual_formats_are_parsed(row: dict[str, Any], prompt: Any, response: Any, rejected: Any) -> None:
    place = "a.jsonl, line 7"
    other = None if rejected is None else Example(rejected[0], rejected[1], place=place)
    assert read(row) == Example(prompt, response, other, place)


def test_configured_columns_take_precedence() -> None:
    row = {
        "prompt": "no",
        "response": "no",
        "q": "a",
        "a": "b",
        "bad": "c",
        "messages": [USER, YES],
        "chat": [USER, NO],
    }
    assert read(row, prompt_column="q", response_column="a", rejected_column="bad") == Example(
        "a", "b", Example("a", "c", place="a.jsonl, line 7"), "a.jsonl, line 7"
    )
    assert read(row, messages_column="chat").response == NO
    assert read(row, prompt_column="prompt", response_column="response").response == "no"
    assert read(row | {"q": None}, prompt_column="q", response_column="a", messages_column="chat").response == NO
    assert read(row, prompt_column="q", response_column="a", messages_column="chat").response == "b"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, r"no prompt with a response, completion, chosen, and no messages \(it has prompt\): name"),
        ({"text": "a"}, r"has no prompt .* \(it has text\)"),
        ({"prompt": "a", "response": None}, r"has no prompt with a response.* \(it has prompt\)"),
        ({"instruction": "a", "input": "b", "output": "c"}, r"\(it has input, instruction, output\)"),
        ({}, r"\(it has nothing\)"),
        ({"prompt": 3, "response": "b"}, r"prompt is 3 \(int\): write text or a list of messages"),
        ({"prompt": "a", "response": 42}, r"response is 42 \(int\): write text"),
        ({"prompt": "a", "response": float("nan")}, r"response is nan \(float\): write text"),
        ({"prompt": "a", "response": {"text": "b"}}, r"response is {'text': 'b'} \(dict\)"),
        ({"prompt": "a", "response": b"b"}, r"\(bytes\)"),
        ({"prompt": "a", "response": "b", "completion": "c"}, "has response and completion: name the one to read"),
        ({"prompt": "a", "response": "b", "messages": [USER, YES]}, "has response and messages: name the one to read"),
        ({"prompt": "a", "completion": "b", "label": False}, "its label is false, so its completion is not a demons"),
        ({"prompt": "a", "completion": "b", "label": "False"}, "its label is false, so its completion is not"),
        ({"messages": [{"role": "user", "content": [*parts("a"), {"type": "image"}]}, YES]}, "messages must be a li"),
        ({"prompt": "a", "chosen": "b", "rejected": [NO]}, "chosen and rejected"),
        ({"chosen": "Yes.", "rejected": "No."}, "has no prompt, and its chosen and rejected share no prefix"),
        ({"chosen": "It is so.", "rejected": "It is so."}, "has no prompt, and its chosen and rejected share no pre"),
        ({"chosen": "Yes."}, "has no prompt"),
        ({"messages": []}, r"messages must be a list of {role, content}, but is \[\]"),
        ({"messages": [USER]}, "messages must be a list of .* the last of role assistant"),
        ({"messages": [USER, USER]}, "the last of role assistant"),
        ({"messages": [YES]}, "the last of role assistant, after a prompt"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "messages must be .* content is None"),
        ({"messages": [USER, {"role": "assistant", "content": 4}]}, "messages must be .* content is 4"),
        ({"messages": "[{'role': 'user', 'content': 'a'}]"}, "messages is text, not a list of messages: write it"),
        ({"prompt": "[{'role': 'user', 'content': 'a'}]", "response": "b"}, "prompt is a list of messages that was wr"),
        ({"prompt": "a", "completion": '[{"content": "b", "role": "assistant"}]'}, "completion is a list of messages"),
        ({"prompt": "\udfff", "response": "b"}, "a lone surrogate"),
        ({"prompt": "a", "response": "b", "meta": [{"x": "\ud800"}]}, "a lone surrogate"),
    ],
)  # fmt: skip
def test_an_invalid_row_raises_with_its_place(row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^a.jsonl, line 7.*{message}"):
        read(row)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("one two three", "one two four", "one two"),
        ("one two", "one two three", "one"),  # "two" is not known to be a full word of the prompt
        ("one\n\ntwo", "one\n\nthree", "one"),
        ("a", "b", ""),
        ("same word", "same words", "same"),
        ("x\n\nAssistant: a\n\nHuman: b\n\nAssistant: c", "x\n\nAssistant: a\n\nHuman: b\n\nAssistant: d", None),
    ],
)
def test_common_beginning_of_two_texts(first: str, second: str, expected: str | None) -> None:
    assert common_beginning(first, second) == (expected if expected is not None else first[:-2])
    assert common_beginning(second, first) == common_beginning(first, second)


def test_deeply_nested_rows_do_not_overflow_the_stack() -> None:
    """Nested as deeply as the JSON parser allows; such a value in place of text raises ``UserError``."""
    deep: Any = "end"
    for _ in range(5000):
        deep = {"a": [deep]}
    assert read({"prompt": "a", "response": "b", "meta": deep}).response == "b"
    with pytest.raises(UserError, match=r"response is nested too deeply \(dict\): write text"):
        read({"prompt": "a", "response": deep})
