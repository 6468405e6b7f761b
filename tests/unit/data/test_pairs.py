from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from transformers import PreTrainedTokenizerFast

from rlgaf_ray.config.rows import PairSettings
from rlgaf_ray.config.task import TaskSection
from rlgaf_ray.data.pair import Pair
from rlgaf_ray.data.pair_tokens import cut
from rlgaf_ray.data.pairs import PARTS, PairSource
from rlgaf_ray.data.parts import split_by_group
from rlgaf_ray.errors import UserError


def pair(number: int, group: str | None = None, *, response: str | None = None, context: str = "") -> Pair:
    text = response or f" the answer {number}"
    return Pair("", context, f"What is {number}?", text, group or str(number), (text.strip(),))


@pytest.mark.parametrize(
    ("span", "max_tokens", "expected"),
    [
        ((10, 12), 5, (3, 8)),  # token 5, in the middle
        ((0, 2), 5, (0, 5)),
        ((18, 20), 5, (5, 10)),
        ((8, 14), 5, (3, 8)),  # tokens 4 to 6
        ((4, 20), 3, (2, 5)),  # longer than the window, which starts with it
        (None, 5, (0, 5)),
        ((30, 32), 5, (0, 5)),  # outside the text
        ((-4, -2), 5, (0, 5)),
        ((10, 12), 10, (0, 10)),
        ((10, 12), 12, (0, 12)),
    ],
)
def test_truncation_keeps_the_span(span: tuple[int, int] | None, max_tokens: int, expected: tuple[int, int]) -> None:
    offsets = [(2 * row, 2 * row + 2) for row in range(10)]
    assert cut(offsets, span, max_tokens=max_tokens) == slice(*expected)


def test_parts_share_no_group() -> None:
    pairs = [pair(number, f"group {number // 4}") for number in range(200)]
    shares = {"train": 3.0, "judge": 1.0, "test": 1.0}
    parts = split_by_group(pairs, shares)
    assert [len(part) for part in parts.values()] == [120, 40, 40]
    groups = [{item.group for item in part} for part in parts.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 50
    assert split_by_group(pairs, shares) == parts
    assert [len(part) for part in split_by_group(pairs, shares, max_rows=100).values()] == [60, 20, 20]
    with pytest.raises(UserError, match="1 articles or prompts are too few for the parts train, judge, test: none"):
        split_by_group(pairs[:4], shares)


@pytest.fixture
def source() -> PairSource:
    settings = PairSettings()
    task = TaskSection(name="squad", prompt_tokens=40, response_tokens=20)
    return PairSource.split(task, settings, [pair(number) for number in range(40)], base=True)


def test_prompts_and_responses_are_tokenised(
    source: PairSource, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    task = source.tokenized(tokenizer, tmp_path)
    assert len(task.demonstrations) == len(source.parts["demonstrations"])
    for item, text in zip(task.demonstrations, source.parts["demonstrations"], strict=True):
        assert tokenizer.decode(item.prompt_ids.tolist()) == text.after
        assert tokenizer.decode(item.response_ids.tolist()) == text.response + tokenizer.eos_token
        assert task.evaluated_ids(item) is item.response_ids
    assert task.max_tokens == 60
    assert task.evaluation_pairs("test") == source.parts["test"]
    assert len(task.evaluation("validation")) == len(source.parts["validation"])
    items, labels = task.discriminator_warmup()
    assert len(items) == 2 * labels.sum() == 2 * len(source.parts["base"])


@pytest.mark.parametrize("loss", ["response", "all"])
def test_warmup_loss_selects_the_learned_tokens(
    source: PairSource, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, loss: Literal["response", "all"]
) -> None:
    source.settings.warmup_loss = loss
    task = source.tokenized(tokenizer, tmp_path)
    assert task.base_key == ("pairs 2", "40", "20", loss, "")
    blocks = task.warmup_blocks(7)
    assert blocks.token_ids.shape == blocks.learned.shape == (len(source.parts["base"]), 60)
    for row, text in enumerate(source.parts["base"]):
        learned = str(tokenizer.decode(blocks.token_ids[row, blocks.learned[row]].tolist()))
        whole = text.response + tokenizer.eos_token
        assert learned == whole if loss == "response" else learned.endswith(whole)
        start = blocks.learned[row].argmax()
        assert start == (1 if loss == "all" else len(tokenizer.encode(text.after, add_special_tokens=False)))


def test_too_long_pairs_are_dropped_and_contexts_truncated(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    texts = [pair(number, context="a long story " * 30) for number in range(40)]
    texts[3:6] = [pair(number, response=" far too long an answer" * 20) for number in range(3, 6)]
    task = TaskSection(name="squad", prompt_tokens=40, response_tokens=20)
    tokenized = PairSource.split(task, PairSettings(), texts, base=True).tokenized(tokenizer, tmp_path)
    items = [item for name in PARTS for item in tokenized._parts[name]]
    assert len(items) == 37
    assert {len(item.prompt_ids) for item in items} == {40}
    assert all(str(tokenizer.decode(item.prompt_ids.tolist())).endswith("?") for item in items)
    with pytest.raises(UserError, match=r"none of the .* pairs of the part .* fits task\.prompt_tokens=2 and task"):
        PairSource.split(task.model_copy(update={"prompt_tokens": 2}), PairSettings(), texts, base=True).tokenized(
            tokenizer, tmp_path
        )


def test_without_a_base_warmup_its_share_goes_to_demonstrations(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    task = TaskSection(name="squad", prompt_tokens=40, response_tokens=20)
    source = PairSource.split(task, PairSettings(), [pair(number) for number in range(40)], base=False)
    assert {name: len(part) for name, part in source.parts.items()} == {
        "base": 0,
        "demonstrations": 32,
        "validation": 4,
        "test": 4,
    }
    made = source.tokenized(tokenizer, tmp_path)
    assert len(made.demonstrations) == 32
    items, labels = made.discriminator_warmup()
    assert len(items) == 2 * labels.sum() == 64
    assert len(made.warmup_blocks(1)) == 32


def test_the_checksum_depends_on_the_data(
    source: PairSource, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    first = source.tokenized(tokenizer, tmp_path).checksum
    assert len(first) == 64
    assert source.tokenized(tokenizer, tmp_path).checksum == first
    source.parts["test"][0] = pair(99)
    assert source.tokenized(tokenizer, tmp_path).checksum != first
