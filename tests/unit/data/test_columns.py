"""Rows in the forms that data sets have, and what of them would be learned wrongly if it were not refused."""

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
    """As exports of OpenAI's API and Parquet write them."""
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
        ({"prompt": "a", "completion": " b", "label": 0}, "a", " b", None),  # a class of some kind
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
        (  # conversations that part before their last turn: each answers its own
            {"chosen": [USER, YES, MORE, YES], "rejected": [USER, NO, MORE, NO]},
            [USER, YES, MORE],
            YES,
            ([USER, NO, MORE], NO),
        ),
    ],
)  # fmt: skip
def test_usual_columns_are_found(row: dict[str, Any], prompt: Any, response: Any, rejected: Any) -> None:
    place = "a.jsonl, line 7"
    other = None if rejected is None else Example(rejected[0], rejected[1], place=place)
    assert read(row) == Example(prompt, response, other, place)


def test_named_columns_go_first() -> None:
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
def test_a_row_that_is_no_demonstration_is_named(row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^a.jsonl, line 7.*{message}"):
        read(row)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("one two three", "one two four", "one two"),
        ("one two", "one two three", "one"),  # a word may go on
        ("one\n\ntwo", "one\n\nthree", "one"),
        ("a", "b", ""),
        ("same word", "same words", "same"),
        ("x\n\nAssistant: a\n\nHuman: b\n\nAssistant: c", "x\n\nAssistant: a\n\nHuman: b\n\nAssistant: d", None),
    ],
)
def test_the_beginning_that_two_texts_share(first: str, second: str, expected: str | None) -> None:
    assert common_beginning(first, second) == (expected if expected is not None else first[:-2])
    assert common_beginning(second, first) == common_beginning(first, second)


def test_rows_may_be_nested_deeply() -> None:
    """As deep as the JSON parser reads; a value of that kind where text belongs is named."""
    deep: Any = "end"
    for _ in range(5000):
        deep = {"a": [deep]}
    assert read({"prompt": "a", "response": "b", "meta": deep}).response == "b"
    with pytest.raises(UserError, match=r"response is nested too deeply \(dict\): write text"):
        read({"prompt": "a", "response": deep})
