"""Prompts without answers and rows for the base warm-up: parsing, dropping, and separation from demonstrations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from rlgaf_ray.config import load_config
from rlgaf_ray.config.task import TaskSection
from rlgaf_ray.data.pairs import PairTask
from rlgaf_ray.data.rows import hub_source, jsonl_source
from rlgaf_ray.errors import UserError
from rlgaf_ray.loop.data_checks import check_demonstrations
from rlgaf_ray.loop.draws import Draws
from rlgaf_ray.types import Rollout, ScoredRollout
from tests.unit.data.test_rows import TEMPLATE

ROWS = [{"prompt": f"Question {number}?", "response": f" answer {number}"} for number in range(30)]
FREE = [{"prompt": f"Ask {number}."} for number in range(12)]


def written(folder: Path, name: str, rows: list[Any]) -> str:
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def section(folder: Path, rows: list[Any] = ROWS, **others: list[Any]) -> TaskSection:
    values: dict[str, Any] = {name: written(folder, name, each) for name, each in others.items()}
    values["path"] = written(folder, "rows", rows)
    return TaskSection.model_validate(
        {"name": "jsonl", "prompt_tokens": 60, "response_tokens": 30, "max_dropped_share": 0.6, "jsonl": values}
    )


def made(tokenizer: PreTrainedTokenizerFast, task: TaskSection, *, base: bool = False, keep: bool = False) -> PairTask:
    return jsonl_source(task, base=base, keep_rows=keep).tokenized(tokenizer, Path())


def test_free_prompts_are_tokenised_like_demonstrations(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """An answer in the same row is ignored."""
    free = [*FREE, {"question": "And this?", "answer": "not read"}]
    task = made(tokenizer, section(tmp_path, prompts=free))
    assert [tokenizer.decode(ids) for ids in task.prompts] == [*(row["prompt"] for row in FREE), "And this?"]
    assert all(ids.dtype == np.int32 for ids in task.prompts)
    plain = made(tokenizer, section(tmp_path))
    assert len(plain.prompts) == 0 and plain.checksum != task.checksum
    for left, right in zip(task.demonstrations, plain.demonstrations, strict=True):
        assert np.array_equal(left.prompt_ids, right.prompt_ids)


def test_too_long_and_evaluated_prompts_are_dropped(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    known = made(tokenizer, section(tmp_path / "first"))
    asked = [str(tokenizer.decode(known.evaluation(part)[0].prompt_ids)) for part in ("validation", "test")]
    free = [*FREE, *({"prompt": prompt} for prompt in asked), {"prompt": "very long " * 60}]
    task = made(tokenizer, section(tmp_path, prompts=free))
    assert len(task.prompts) == task.counts.used["prompts"] == len(FREE)
    assert task.counts.dropped["prompts"] == {
        "that are prompts of the evaluation": 2,
        "with a prompt longer than task.prompt_tokens=60": 1,
    }
    with pytest.raises(UserError, match=r"task.jsonl.prompts: all 1 are left out: 1 with a prompt longer than"):
        made(tokenizer, section(tmp_path, prompts=free[-1:]))


def test_chat_prompts_are_rendered(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    chat = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token=tokenizer.eos_token)
    chat.chat_template = TEMPLATE
    user = {"role": "user", "content": "Who?"}
    rows = [
        {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]}
        for row in ROWS
    ]
    free = [{"messages": [user, {"role": "assistant", "content": "left out"}]}, {"prompt": [user]}, {"prompt": "Who?"}]
    task = made(chat, section(tmp_path, rows, prompts=free))
    assert {str(chat.decode(ids.tolist())) for ids in task.prompts} == {"[user] Who?\n[assistant] "}
    assert len(task.prompts) == 3
    with pytest.raises(UserError, match=r"prompts.jsonl.* it is a chat, but the demonstrations are plain: use one f"):
        made(chat, section(tmp_path, prompts=free))


def test_prompt_rows_are_kept_for_reward_functions(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    free = [row | {"level": number} for number, row in enumerate(FREE)]
    task = made(tokenizer, section(tmp_path, prompts=free), keep=True)
    assert len(task.rows) == len(task.demonstrations) + len(FREE)
    assert [row["level"] for row in task.rows[len(task.demonstrations) :]] == [
        *range(12)
    ]  # in the order of Prompt.prompt_id


@pytest.mark.parametrize(
    ("loss", "share"),
    [("binary_cross_entropy", 1.0), ("binary_cross_entropy", 0.5), ("bradley_terry", 0.5), ("contrastive", 0.5)],
)
def test_free_prompts_are_never_real_data_for_the_discriminator(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, loss: str, share: float
) -> None:
    task = made(tokenizer, section(tmp_path, prompts=FREE))
    config = load_config(None, [f"discriminator.loss={loss}", f"rollout.free_prompts={share}"])
    check_demonstrations(config, task)
    draws = Draws(config, task, config.discriminator.needs)
    free = {ids.tobytes() for ids in task.prompts}
    asked: set[bytes] = set()
    real = {(item.prompt_ids.tobytes(), item.response_ids.tobytes()) for item in task.demonstrations}
    for _ in range(6):
        prompts = draws.prompts()
        sampled = [prompt for prompt in prompts if prompt.token_ids.tobytes() in free]
        assert len(sampled) == share * len(prompts)
        asked |= {prompt.token_ids.tobytes() for prompt in sampled}
        rollouts = [
            Rollout(each.prompt_id, each.token_ids, np.array([5], np.int32), np.zeros(1, np.float32), "stop", 0)
            for each in prompts
        ]
        fake = [each.rollout for each in draws.comparable([ScoredRollout(item, 0.0, 0) for item in rollouts])]
        for item in draws.real(fake):
            assert (item.prompt_ids.tobytes(), item.response_ids.tobytes()) in real
        assert not free & {item.prompt_ids.tobytes() for item in draws.contrast(fake)}
    assert asked == free
    items, labels = task.discriminator_warmup()
    assert not free & {item.prompt_ids.tobytes() for item, label in zip(items, labels, strict=True) if label}


@pytest.mark.parametrize("loss", ["bradley_terry", "contrastive"])
def test_only_free_prompts_with_a_pairwise_loss_raise(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, loss: str
) -> None:
    """They raise before the run starts, unless the discriminator is frozen after its warm-up."""
    task = made(tokenizer, section(tmp_path, prompts=FREE))
    keys = [f"discriminator.loss={loss}", "rollout.free_prompts=1.0"]
    with pytest.raises(UserError, match=f"leaves no prompt with a demonstration, which discriminator.loss={loss}"):
        check_demonstrations(load_config(None, keys), task)
    check_demonstrations(load_config(None, [*keys, "discriminator.updates_per_generator_update=0"]), task)


def test_a_row_without_a_prompt_raises_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"prompts.jsonl.* has no prompt: name its column by prompt_column"):
        jsonl_source(section(tmp_path, prompts=[{"text": "no prompt"}]), base=False)
    with pytest.raises(UserError, match=r"messages has only assistant messages: add a message of another role"):
        answer = {"role": "assistant", "content": "I answer."}
        jsonl_source(section(tmp_path, prompts=[{"messages": [answer]}]), base=False)


def test_the_base_warmup_can_have_its_own_rows(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """The shares of the other parts then apply to all other rows."""
    long = "the film was good and very long and quiet " * 12
    base = [{"prompt": "Base?", "response": " base"}, {"text": "two old friends"}, {"text": long}]
    task = made(tokenizer, section(tmp_path, base=base), base=True)
    assert task.counts.used == {"base": 1, "demonstrations": 20, "validation": 5, "test": 5}
    blocks = task.warmup_blocks(8)
    assert blocks.token_ids.shape[1] == task.max_tokens == 90 and not blocks.learned[:, 0].any()
    texts = [
        str(tokenizer.decode(ids[: 1 + int(learned.nonzero()[0][-1])]))
        for ids, learned in zip(blocks.token_ids, blocks.learned, strict=True)
    ]
    end = tokenizer.eos_token
    assert texts[:2] == [f"Base? base{end}", f"two old friends{end}"]
    assert "".join(texts[2:]) == f"{long}{end}" and len(texts) > 3
    assert blocks.learned[1, 1]  # texts have loss on all tokens but the first
    assert not any(b"Base" in str(tokenizer.decode(item.prompt_ids)).encode() for item in task.demonstrations)
    assert task.checksum != made(tokenizer, section(tmp_path, base=base[:2]), base=True).checksum


def test_the_base_warmup_can_read_only_texts(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    source = jsonl_source(section(tmp_path, base=[{"text": "two old friends"}]), base=True)
    assert [*source.warmup_texts] == ["two old friends"]
    task = source.tokenized(tokenizer, tmp_path)
    assert len(task.warmup_blocks(8)) == 1
    items, labels = task.discriminator_warmup()
    assert labels.sum() == len(task.demonstrations) and len(items) == 2 * len(task.demonstrations)


def test_base_rows_without_a_base_warmup_raise(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task.jsonl.base is for the base warm-up, but warmup.generator.steps=0"):
        jsonl_source(section(tmp_path, base=[{"text": "two old friends"}]), base=False)


def test_hub_datasets_with_prompts_and_base_rows(
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hub"))
    folders = {}
    for name, rows in {"rows": ROWS, "free": FREE, "texts": [{"text": "two old friends"}]}.items():
        folders[name] = tmp_path / name
        folders[name].mkdir()
        written(folders[name], "train", rows)
    values = {"dataset": str(folders["rows"]), "prompts": str(folders["free"]), "base": str(folders["texts"])}
    task = TaskSection.model_validate({"name": "hub", "prompt_tokens": 60, "response_tokens": 30, "hub": values})
    found = hub_source(task, base=True).tokenized(tokenizer, tmp_path)
    assert len(found.prompts) == len(FREE) and len(found.warmup_blocks(8)) == 1
    broken = task.model_copy(update={"hub": task.hub.model_copy(update={"prompts_split": "dev"})})
    with pytest.raises(UserError, match=r'task.hub.prompts: cannot load .* Unknown split "dev"'):
        hub_source(broken, base=True)
