from __future__ import annotations

import numpy as np
import pytest

from rlgaf_ray.config import Config, load_config, with_values
from rlgaf_ray.errors import UserError
from rlgaf_ray.loop.data_checks import check_demonstrations
from rlgaf_ray.loop.draws import Draws
from rlgaf_ray.testing import FakeTask
from rlgaf_ray.types import Demonstration, Rollout, ScoredRollout

PROMPTS = (0, 0, 1, 2, 3)


def drawn_from(config: Config, task: FakeTask) -> Draws:
    return Draws(config, task, config.discriminator.needs)


def rollout(row: int) -> Rollout:
    return Rollout(row, np.array([row], np.int32), np.array([7], np.int32), np.zeros(1, np.float32), "stop", 0)


def test_contrastive_pairs_demonstrations_with_other_prompts() -> None:
    config = load_config(None, ["discriminator.loss=contrastive", "discriminator.contrastive_prompts=6"])
    draws = drawn_from(config, FakeTask(PROMPTS, contrast=()))
    rollouts = [rollout(row) for row in (3, 4, 0, 1)]
    real = draws.real(rollouts)
    contrast = draws.contrast(rollouts)
    assert [int(item.response_ids[0]) for item in real] == [102, 103, 100, 100]
    assert [int(item.response_ids[0]) for item in contrast] == [102, 103, 100, 100] * 6
    prompts = np.array([int(item.prompt_ids[0]) for item in contrast]).reshape(6, 4)
    assert not (prompts == [2, 3, 0, 0]).any()
    assert set(prompts.flatten()) == {0, 1, 2, 3}


def test_contrast_rows_are_drawn_only_with_a_positive_weight() -> None:
    task = FakeTask(PROMPTS, contrast=range(5))
    rollouts = [rollout(row) for row in range(4)]
    batch = "discriminator.batch_size=10"
    assert drawn_from(load_config(None, [batch, "discriminator.contrast_weight=0"]), task).contrast(rollouts) == []
    labelled = load_config(None, [batch, "discriminator.contrast_weight=1.3"])
    drawn = drawn_from(labelled, task).contrast(rollouts)
    assert sorted(int(item.prompt_ids[0]) for item in drawn) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_pairs_have_a_negative_of_the_same_prompt_where_there_is_one() -> None:
    config = load_config(
        None, ["generator.algorithm=dpo", "generator.dpo.rejected=labels", "generator.average_decay=0"]
    )
    task = FakeTask(PROMPTS, contrast=[1, 9])
    sampled = [Demonstration(np.array([1], np.int32), np.array([55], np.int32))]  # contrast for the discriminator alone
    draws = Draws(config, task, config.discriminator.needs, sampled)
    rollouts = [rollout(row) for row in (0, 2, 2, 4)]
    text = draws.text_beside(rollouts)
    assert text is not None
    assert text.token_ids[:4, 1].tolist() == [100, 101, 101, 103]
    negatives = text.token_ids[4:].tolist()
    assert negatives[1] == negatives[2] == [1, 101]
    assert {tuple(negatives[0]), tuple(negatives[3])} <= {(1, 101), (9, 109)}  # others keep their own prompt


def test_pairs_without_labelled_negatives_are_refused() -> None:
    config = load_config(
        None, ["generator.algorithm=dpo", "generator.dpo.rejected=labels", "generator.average_decay=0"]
    )
    config = with_values(
        config, {"discriminator.contrast_weight": 0.0, "warmup.sft.steps": 1, "discriminator.held_out": 0}
    )
    with pytest.raises(UserError, match=r"generator.dpo.rejected=labels needs labelled negatives, but task.name=imdb"):
        check_demonstrations(config, FakeTask(range(300), contrast=()))


class FreePrompts(FakeTask):
    """Ten prompts without answers, and wrong prompts of its own."""

    @property
    def prompts(self) -> list[np.ndarray]:
        return [np.array([50 + row], np.int32) for row in range(10)]

    def other_prompts(self, row: int) -> list[np.ndarray]:
        return [np.array([1000 * (row + 1) + number], np.int32) for number in range(3)]


def answered(ids: list[int]) -> list[ScoredRollout]:
    return [ScoredRollout(rollout(row), 0.0, 0) for row in ids]


@pytest.mark.parametrize("loss", ["binary_cross_entropy", "bradley_terry", "contrastive"])
def test_free_prompts_are_sampled_but_never_used_as_demonstrations(loss: str) -> None:
    keys = [f"discriminator.loss={loss}", "rollout.free_prompts=0.75", "rollout.batch_size=32"]
    config = load_config(None, [*keys, "discriminator.batch_size=32"])
    draws = drawn_from(config, FreePrompts(PROMPTS, contrast=()))
    asked = set()
    for _ in range(20):
        prompts = draws.prompts()
        numbers = [prompt.prompt_id for prompt in prompts]
        assert sum(number >= len(PROMPTS) for number in numbers) == 6
        assert all(prompt.token_ids[0] == 50 + prompt.prompt_id - len(PROMPTS) for prompt in prompts[2:])
        asked |= {number for number in numbers if number >= len(PROMPTS)}
        scored = answered(numbers)
        usable = draws.comparable(scored)
        assert usable == (scored if loss == "binary_cross_entropy" else scored[:2])
        fake = [item.rollout for item in usable]
        for item in [*draws.real(fake), *draws.contrast(fake)]:
            assert item.response_ids[0] >= 100 and item.prompt_ids[0] not in range(50, 60)
    assert asked == set(range(len(PROMPTS), len(PROMPTS) + 10))
    assert all(prompt.prompt_id < len(PROMPTS) for prompt in draws.warmup_prompts())


def test_wrong_prompts_come_from_the_task() -> None:
    draws = drawn_from(load_config(None, ["discriminator.loss=contrastive"]), FreePrompts(PROMPTS, contrast=()))
    contrast = draws.contrast([rollout(3)] * 4)
    assert {int(item.prompt_ids[0]) for item in contrast} <= {4000, 4001, 4002} and len(contrast) == 32


def test_free_prompts_resume_and_change_no_other_stream() -> None:
    plain, mixed = (load_config(None, [f"rollout.free_prompts={share}"]) for share in (0, 0.5))
    task = FreePrompts(PROMPTS, contrast=())
    first = drawn_from(mixed, task)
    first.prompts()
    state = first.state_dict()
    expected = [first.prompts() for _ in range(3)]
    again = drawn_from(mixed, task)
    again.load_state_dict(state)
    found = [again.prompts() for _ in range(3)]
    assert [[item.prompt_id for item in batch] for batch in found] == [[i.prompt_id for i in b] for b in expected]
    with pytest.raises(UserError, match=r"saved with free prompts: resume with its rollout.free_prompts"):
        drawn_from(plain, task).load_state_dict(state)
    assert drawn_from(plain, task).state_dict().keys() == drawn_from(mixed, task).state_dict().keys()


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        (["rollout.free_prompts=0.01"], "of 16 prompts per batch rounds to 0"),
        (["rollout.free_prompts=1.0", "discriminator.loss=bradley_terry"], "leaves no prompt with a demonstration"),
    ],
)
def test_unusable_shares_are_rejected(keys: list[str], named: str) -> None:
    with pytest.raises(UserError, match=named):
        drawn_from(load_config(None, keys), FreePrompts(PROMPTS, contrast=()))


def test_a_task_without_free_prompts_is_rejected() -> None:
    with pytest.raises(UserError, match="the task has no prompts without answers"):
        drawn_from(load_config(None, ["rollout.free_prompts=0.5"]), FakeTask(PROMPTS, contrast=()))
