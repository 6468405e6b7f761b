from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from rlgaf_ray.config.task import ImdbSettings, SplitSizes, TaskSection
from rlgaf_ray.data.imdb import ImdbSource, ImdbTask
from rlgaf_ray.data.task import evaluation_set
from rlgaf_ray.errors import UserError
from rlgaf_ray.types import EVALUATION_PARTS, Demonstration, EvaluationPart

SIZES = SplitSizes(base=30, demonstrations=30, judge_validation=10, judge_test=12, validation=30)


class Case:
    """A task over a small file, with the expected tokens of its parts."""

    def __init__(self, texts: list[str], tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
        self._tokenizer = tokenizer
        self._folder = folder
        path = folder / "reviews.jsonl"
        rows = [{"text": text, "label": row % 2} for row, text in enumerate(texts)]
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
        self.settings: dict[str, Any] = {"source": "path", "path": str(path), "splits": SIZES}
        source = self.source()
        self.reviews, self.splits = source.reviews, source.splits

    def source(self, *, response_tokens: int = 6, max_demonstrations: int | None = None, **changes: Any) -> ImdbSource:
        imdb = ImdbSettings(**(self.settings | changes))
        return ImdbSource.load(
            TaskSection(
                prompt_tokens=2, response_tokens=response_tokens, max_demonstrations=max_demonstrations, imdb=imdb
            )
        )

    def task(self, **changes: Any) -> ImdbTask:
        return self.source(**changes).tokenized(self._tokenizer, self._folder / "cache")

    def beginnings(self, split: str, label: int, num_tokens: int = 8) -> list[list[int]]:
        """Return the first tokens of the long enough reviews of a split and label."""
        rows = [row for row in getattr(self.splits, split) if self.reviews.labels[row] == label]
        token_ids = [self._tokenizer(self.reviews.texts[row], add_special_tokens=False)["input_ids"] for row in rows]
        assert any(len(ids) < num_tokens for ids in token_ids), "a test that drops nothing shows nothing"
        return [ids[:num_tokens] for ids in token_ids if len(ids) >= num_tokens]


@pytest.fixture
def case(texts: list[str], tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Case:
    return Case(texts, tokenizer, tmp_path)


@pytest.mark.parametrize(("target", "wanted"), [("positive", 1), ("negative", 0)])
def test_demonstrations_are_beginnings_of_reviews_of_the_target(case: Case, target: str, wanted: int) -> None:
    task = case.task(target=target)
    for items, split, label in (
        (task.demonstrations, "demonstrations", wanted),
        (task.contrast, "demonstrations", 1 - wanted),
        (task.evaluation("validation"), "validation", wanted),
        (task.evaluation("test"), "test", wanted),
    ):
        assert [[*item.prompt_ids, *item.response_ids] for item in items] == case.beginnings(split, label)
        assert {(len(item.prompt_ids), len(item.response_ids), item.response_ids.dtype) for item in items} == {
            (2, 6, np.dtype(np.int32))
        }


def test_target_both_puts_the_sentiment_in_the_prompt(case: Case, tokenizer: PreTrainedTokenizerFast) -> None:
    task = case.task(target="both", instruction="a {sentiment} one:")
    asked = [tokenizer.encode(f"a {word} one:", add_special_tokens=False) for word in ("negative", "positive")]
    assert task.max_tokens == 8 + max(map(len, asked))
    assert asked[0] != asked[1]

    def reviews(items: list[Demonstration]) -> list[tuple[int, list[int]]]:
        """Return the requested sentiment and the review's tokens."""
        found = []
        for item in items:
            label = asked.index(item.prompt_ids[:-2].tolist())
            found.append((label, task.evaluated_ids(item).tolist()))
        return sorted(found)

    for split, items in (("demonstrations", task.demonstrations), ("test", task.evaluation("test"))):
        assert reviews(items) == sorted((label, ids) for label in (0, 1) for ids in case.beginnings(split, label))
    wrong = sorted((1 - label, ids) for label in (0, 1) for ids in case.beginnings("demonstrations", label))
    assert reviews(task.contrast) == wrong
    labels = [asked.index(item.prompt_ids[:-2].tolist()) for item in task.evaluation("test")]
    assert task.asked_positive("test").tolist() == labels
    assert set(labels[: len(labels) // 2]) == {0, 1}, "every prefix has both"
    assert task.warmup_blocks(24).token_ids.tolist() == case.task().warmup_blocks(24).token_ids.tolist()
    items, matches = task.discriminator_warmup()
    assert matches.sum() * 2 == len(matches) == len(items)
    rows = case.splits.base
    lengths = [len(tokenizer.encode(case.reviews.texts[row], add_special_tokens=False)) for row in rows]
    assert len(items) == 2 * sum(length // 8 for length in lengths) > 2 * sum(length >= 8 for length in lengths)


def test_the_evaluation_reads_prompt_and_response(case: Case) -> None:
    task = case.task()
    item = task.evaluation("validation")[0]
    assert task.evaluated_ids(item).tolist() == [*item.prompt_ids, *item.response_ids]
    assert task.max_tokens == 8


def test_max_demonstrations_keeps_the_first(case: Case) -> None:
    whole, few = case.task(), case.task(max_demonstrations=3)
    for name in ("demonstrations", "contrast"):
        ids = [[item.response_ids.tolist() for item in getattr(task, name)] for task in (whole, few)]
        assert ids[1] == ids[0][:3] != ids[0]
    assert len(few.evaluation("test")) == len(whole.evaluation("test"))


def test_discriminator_warmup_labels(case: Case) -> None:
    items, labels = case.task(target="negative").discriminator_warmup()
    assert labels.dtype == np.int64
    found = [[*item.prompt_ids, *item.response_ids] for item in items]
    for label, sentiment in ((1, 0), (0, 1)):
        chosen = [ids for ids, value in zip(found, labels, strict=True) if value == label]
        assert chosen == case.beginnings("base", sentiment)


def test_warmup_blocks_are_packed_reviews(case: Case, tokenizer: PreTrainedTokenizerFast) -> None:
    blocks = case.task().warmup_blocks(16)
    assert blocks.token_ids.dtype == np.int32
    text = "<|endoftext|>".join(case.reviews.texts[row] for row in case.splits.base) + "<|endoftext|>"
    expected = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert blocks.token_ids.shape == (len(expected) // 16, 16)
    assert blocks.token_ids.ravel().tolist() == expected[: blocks.token_ids.size]
    assert blocks.learned[:, 1:].all()
    assert not blocks.learned[:, 0].any()


@pytest.mark.parametrize("part", ["validation", "test"])
def test_each_evaluation_part_has_its_own_judge_texts(case: Case, part: EvaluationPart) -> None:
    rows = case.splits.judge_test if part == "test" else case.splits.judge_validation
    for target in ("positive", "negative"):
        texts, labels = case.task(target=target).judge_texts(part)
        assert texts == [case.reviews.texts[row] for row in rows]
        assert labels.tolist() == [case.reviews.labels[row] for row in rows]


def test_the_checksum_is_that_of_the_splits(case: Case) -> None:
    assert case.task().checksum == case.splits.checksum
    assert len(case.splits.checksum) == 64


def test_the_instruction_is_in_the_sft_key_but_not_in_the_base_key(case: Case) -> None:
    task = case.task(target="both", instruction="{sentiment}:")
    assert (*task.base_key, *task.warmup_key) == ("both", "{sentiment}:") and not task.base_key


def test_an_evaluation_set_is_a_part_or_its_first_rows(case: Case, monkeypatch) -> None:
    task = case.task()
    for part in EVALUATION_PARTS:
        items = task.evaluation(part)
        monkeypatch.setattr("rlgaf_ray.data.task.MIN_TEXTS", len(items))
        assert evaluation_set(task, len(items) - 1, part) == items[:-1]
        assert evaluation_set(task, len(items) + 1, part) == items
        monkeypatch.setattr("rlgaf_ray.data.task.MIN_TEXTS", len(items) + 1)
        few = rf"the part {part} has only {len(items)} demonstrations.*raise its share .*task\.hub\.shares"
        with pytest.raises(UserError, match=few):
            evaluation_set(task, 1, part)


def test_settings_that_drop_everything_raise(case: Case) -> None:
    message = (
        r"no positive review of the part demonstrations \(30 reviews\) has the 502 tokens .*task\.response_tokens=500"
    )
    with pytest.raises(UserError, match=message):
        case.task(response_tokens=500)
    with pytest.raises(UserError, match=r"fewer than one block: .*warmup\.generator\.block_tokens=100000"):
        case.task().warmup_blocks(100_000)


def test_short_reviews_are_counted_and_raise_above_a_share(case: Case) -> None:
    """Counts cover both sentiments of the parts that give demonstrations."""
    task = case.task()
    for part in ("demonstrations", "validation", "test"):
        used = len(case.beginnings(part, 0)) + len(case.beginnings(part, 1))
        assert task.counts.used[part] == used
        assert sum(task.counts.dropped[part].values()) == len(getattr(case.splits, part)) - used > 0
    assert "shorter than task.prompt_tokens + task.response_tokens = 8; parts: demonstrations" in task.counts.sentence()
    with pytest.raises(UserError, match=r"left out: .* shorter than .* = 18, a larger share than task.max_dr"):
        case.task(response_tokens=16)


def test_repeated_and_empty_reviews_are_counted(case: Case, tmp_path: Path) -> None:
    once, path = Path(case.settings["path"]).read_text(), tmp_path / "again.jsonl"
    path.write_text("\n".join([once, once, '{"text": " ", "label": 1}']))
    assert dict(case.source(path=str(path)).reviews.left_out) == {
        "reviews without text, left out": 1,
        "reviews that repeat an earlier one, left out": 120,
    }
