"""Too few demonstrations for the config are rejected in one sentence."""

from __future__ import annotations

import pytest

from rlgaf_ray.config import load_config
from rlgaf_ray.errors import UserError
from rlgaf_ray.loop.data_checks import check_demonstrations
from rlgaf_ray.loop.held_out import split_held_out
from rlgaf_ray.testing import FakeTask


def check(task: FakeTask, *words: str) -> None:
    check_demonstrations(load_config(None, ["discriminator.contrast=labels", *words]), task)


def refusal(task: FakeTask, *words: str) -> str:
    with pytest.raises(UserError) as error:
        check(task, *words)
    return str(error.value)


def test_held_out_rows_need_twice_as_many_demonstrations() -> None:
    check(FakeTask(range(10)), "discriminator.held_out=5")
    assert refusal(FakeTask(range(9)), "discriminator.held_out=5") == (
        "discriminator.held_out=5 needs 10 demonstrations or more, but the task has only 9: set discriminator.held_out "
        "to at most 4"
    )
    assert refusal(FakeTask(range(200)), "guard.action=stop").startswith("discriminator.held_out=128 needs 256")


def test_cross_validation_needs_two() -> None:
    check(FakeTask([0, 1]), "warmup.sft.steps=auto")
    check(FakeTask([0]), "warmup.sft.steps=20")
    assert refusal(FakeTask([0]), "warmup.sft.steps=auto") == (
        "warmup.sft.steps=auto cross-validates on at least 2 demonstrations, but the task has 1: add some, or set "
        "warmup.sft.steps to a number"
    )


def test_contrastive_needs_two_prompts() -> None:
    check(FakeTask([0, 0, 1]), "discriminator.loss=contrastive")
    assert refusal(FakeTask([0, 0, 0]), "discriminator.loss=contrastive") == (
        "discriminator.loss=contrastive needs two different prompts, but the 3 training demonstrations share one: "
        "set another discriminator.loss"
    )
    assert "the 2 training demonstrations" in refusal(
        FakeTask([0, 0, 0, 0]), "discriminator.loss=contrastive", "discriminator.held_out=2"
    )
    sft = ("discriminator.contrast_weight=0", "warmup.sft.contrastive_weight=3")
    check(FakeTask([0, 0, 1]), *sft)
    check(FakeTask([0, 0, 0]), *sft, "warmup.sft.steps=0")
    assert refusal(FakeTask([0, 0, 0]), *sft) == (
        "warmup.sft.contrastive_weight=3 needs two different prompts, but the 3 training demonstrations share one: "
        "set it to 0"
    )


def test_contrast_needs_rows_that_are_not_held_out() -> None:
    check(FakeTask(range(4), contrast=[]), "discriminator.contrast_weight=0")
    check(FakeTask(range(4), contrast=range(4)), "discriminator.contrast_weight=1", "discriminator.held_out=2")
    held_out = split_held_out(4, 2)[1].tolist()
    refusal(FakeTask(range(4), contrast=held_out), "discriminator.contrast_weight=1", "discriminator.held_out=2")
    check(FakeTask(range(4), contrast=[]), "discriminator.contrast_weight=1", "discriminator.loss=contrastive")
    assert refusal(FakeTask(range(4), contrast=[]), "discriminator.contrast_weight=0.5") == (
        "discriminator.contrast_weight=0.5 needs labelled negatives, but task.name=imdb has none to train on (for "
        "rows: rejected or other prompts' answers): set it to 0"
    )


def test_base_model_contrast_needs_no_labelled_rows() -> None:
    check(FakeTask(range(10), contrast=()), "discriminator.contrast=base_model", "discriminator.contrast_weight=1")
    assert "discriminator.contrast_weight=1 needs labelled negatives" in refusal(
        FakeTask(range(10), contrast=()), "discriminator.contrast_weight=1"
    )


def test_a_labelled_warmup_needs_negatives() -> None:
    labelled = ("discriminator.contrast_weight=0", "warmup.discriminator.type=labels")
    assert refusal(FakeTask([0, 1], contrast=[]), *labelled) == (
        "warmup.discriminator.type=labels needs labelled negatives, but task.name=imdb has none (for rows: rejected or "
        "other prompts' answers): set warmup.discriminator.type=rollouts"
    )
    check(FakeTask([0, 1], contrast=[]), *labelled, "warmup.discriminator.steps=0")


def test_dpo_learns_the_end_of_short_demonstrations() -> None:
    dpo = ("generator.algorithm=dpo", "generator.average_decay=0", "discriminator.contrast_weight=0")
    check(FakeTask([0, 1]), *dpo, "rollout.stop_at_end_of_text=true")
    check(FakeTask([0, 1]), *dpo, "task.response_tokens=1")
    assert refusal(FakeTask([0, 1]), *dpo, "rollout.stop_at_end_of_text=false") == (
        "generator.algorithm=dpo learns the end of the demonstrations, which rollout.stop_at_end_of_text=false masks: "
        "set it to true"
    )
