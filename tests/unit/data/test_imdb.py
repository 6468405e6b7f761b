from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from rlgaf_ray.config.schema import SplitSizes, TaskSection
from rlgaf_ray.data.imdb import ImdbTask, prepare_imdb
from rlgaf_ray.data.reviews import load_reviews
from rlgaf_ray.data.splits import split_reviews

SIZES = SplitSizes(generator_warmup=30, demonstrations=30, discriminator_warmup=20, judge=10, held_out=30)


class Case:
    """A task over a small file, and the texts of its splits by hand."""

    def __init__(self, texts: list[str], tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
        self._tokenizer = tokenizer
        self._folder = folder
        path = folder / "reviews.jsonl"
        rows = [{"text": text, "label": row % 2} for row, text in enumerate(texts)]
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
        self.settings: dict[str, Any] = {"source": "path", "path": str(path), "splits": SIZES}
        self.settings |= {"prompt_tokens": 2, "response_tokens": 6}
        self.reviews = load_reviews(TaskSection(**self.settings))
        self.splits = split_reviews(self.reviews, SIZES)

    def task(self, **changes: Any) -> ImdbTask:
        return prepare_imdb(
            TaskSection(**(self.settings | changes)), self.reviews, self.splits, self._tokenizer, self._folder / "cache"
        )

    def beginnings(self, split: str, label: int, num_tokens: int = 8) -> list[list[int]]:
        """The first tokens of the long enough reviews of one split and label."""
        rows = [row for row in getattr(self.splits, split) if self.reviews.labels[row] == label]
        token_ids = [self._tokenizer(self.reviews.texts[row], add_special_tokens=False)["input_ids"] for row in rows]
        assert any(len(ids) < num_tokens for ids in token_ids), "a test that drops nothing shows nothing"
        return [ids[:num_tokens] for ids in token_ids if len(ids) >= num_tokens]


@pytest.fixture
def case(texts: list[str], tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Case:
    return Case(texts, tokenizer, tmp_path)


@pytest.mark.parametrize(("target", "wanted"), [("positive", 1), ("negative", 0)])
def test_demonstrations_are_exact_cuts_of_the_wanted_kind(case: Case, target: str, wanted: int) -> None:
    task = case.task(target=target)
    for items, split, label in (
        (task.demonstrations, "demonstrations", wanted),
        (task.contrast, "demonstrations", 1 - wanted),
        (task.held_out, "held_out", wanted),
    ):
        assert [[*item.prompt_ids, *item.response_ids] for item in items] == case.beginnings(split, label)
        assert {(len(item.prompt_ids), len(item.response_ids), item.response_ids.dtype) for item in items} == {
            (2, 6, np.dtype(np.int32))
        }


def test_train_prompts_are_the_demonstrations_prompts_numbered_by_row(case: Case) -> None:
    task = case.task()
    assert [prompt.prompt_id for prompt in task.train_prompts] == list(range(len(task.demonstrations)))
    for prompt, demonstration in zip(task.train_prompts, task.demonstrations, strict=True):
        np.testing.assert_array_equal(prompt.token_ids, demonstration.prompt_ids)


def test_discriminator_warmup_labels_the_wanted_kind_one(case: Case) -> None:
    items, labels = case.task(target="negative").discriminator_warmup()
    assert labels.dtype == np.int64
    found = [[*item.prompt_ids, *item.response_ids] for item in items]
    for label, sentiment in ((1, 0), (0, 1)):
        chosen = [ids for ids, value in zip(found, labels, strict=True) if value == label]
        assert chosen == case.beginnings("discriminator_warmup", sentiment)


def test_warmup_blocks_are_whole_reviews_end_to_end(case: Case, tokenizer: PreTrainedTokenizerFast) -> None:
    blocks = case.task().warmup_blocks(16)
    assert blocks.dtype == np.int32
    text = "<|endoftext|>".join(case.reviews.texts[row] for row in case.splits.generator_warmup) + "<|endoftext|>"
    expected = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert blocks.shape == (len(expected) // 16, 16)
    assert blocks.ravel().tolist() == expected[: blocks.size]


def test_judge_reads_its_own_split_with_sentiment_labels(case: Case) -> None:
    for target in ("positive", "negative"):
        texts, labels = case.task(target=target).judge_texts
        assert texts == [case.reviews.texts[row] for row in case.splits.judge]
        assert labels.tolist() == [case.reviews.labels[row] for row in case.splits.judge]


def test_checksum_is_that_of_the_splits(case: Case) -> None:
    assert case.task().checksum == case.splits.checksum
    assert len(case.splits.checksum) == 64


def test_evaluation_set_refuses_more_prompts_than_there_are(case: Case) -> None:
    task = case.task()
    count = len(task.held_out)
    assert task.evaluation_set(count - 1) == task.held_out[:-1]
    with pytest.raises(ValueError, match=rf"evaluation\.num_prompts={count + 1}, but only {count} held-out positive"):
        task.evaluation_set(count + 1)


def test_settings_that_leave_nothing_say_which(case: Case) -> None:
    message = r"no positive review of task\.splits\.demonstrations=30 has the 502 tokens .*task\.response_tokens=500"
    with pytest.raises(ValueError, match=message):
        case.task(response_tokens=500)
    with pytest.raises(ValueError, match=r"fewer than one block: .*warmup\.generator\.block_tokens=100000"):
        case.task().warmup_blocks(100_000)
