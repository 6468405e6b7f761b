from __future__ import annotations

import numpy as np

from rlgaf_ray.config import Config, load_config
from rlgaf_ray.loop.draws import Draws
from rlgaf_ray.testing import FakeTask
from rlgaf_ray.types import Rollout

PROMPTS = (0, 0, 1, 2, 3)


def drawn_from(config: Config, task: FakeTask) -> Draws:
    return Draws(config, task, config.discriminator.needs)


def rollout(row: int) -> Rollout:
    return Rollout(row, np.array([row], np.int32), np.array([7], np.int32), np.zeros(1, np.float32), "stop", 0)


def test_contrastive_puts_each_demonstration_under_other_prompts() -> None:
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


def test_demonstrations_of_the_unwanted_kind_are_drawn_only_where_they_have_a_weight() -> None:
    task = FakeTask(PROMPTS, contrast=range(5))
    rollouts = [rollout(row) for row in range(4)]
    batch = "discriminator.batch_size=10"
    assert drawn_from(load_config(None, [batch, "discriminator.contrast_weight=0"]), task).contrast(rollouts) == []
    labelled = load_config(None, [batch, "discriminator.contrast_weight=1.3"])
    drawn = drawn_from(labelled, task).contrast(rollouts)
    assert sorted(int(item.prompt_ids[0]) for item in drawn) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
