"""The loop over fake roles: discriminator updates leave out the rollouts with the highest scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from rlgaf_ray.loop.roles import Pending
from rlgaf_ray.testing import FakeRoles
from rlgaf_ray.types import Demonstration, Rollout, ScoredRollout, TextBlocks
from tests.unit.loop.test_healing import run, settings

SCORES = [0.5, -1.0, 3.0, 0.0, 2.0, -2.0, 1.0, 1.5]  # of an iteration's rollouts
LEARNED = [0, 1, 3, 5, 6, 7]  # all but the two highest


class Recording(FakeRoles):
    def __init__(self) -> None:
        super().__init__()
        self.scored: list[list[Rollout]] = []
        self.updates: list[tuple[list[int], int, bool]] = []  # rollouts by their place, contrast, are they pairs
        self.num_taught: list[int] = []  # to the generator

    def score(self, rollouts: Sequence[Rollout]) -> list[ScoredRollout]:
        self.scored.append(list(rollouts))
        return [ScoredRollout(rollout, score, 0) for rollout, score in zip(rollouts, SCORES, strict=True)]

    def update_discriminator(
        self, real: Sequence[Demonstration], fake: Sequence[Rollout], contrast: Sequence[Demonstration]
    ) -> Pending:
        places = [index for index, rollout in enumerate(self.scored[-1]) if any(rollout is each for each in fake)]
        pairs = [int(item.prompt_ids[0]) for item in real] == [rollout.prompt_id for rollout in fake]
        self.updates.append((places, len(contrast), pairs))
        return lambda: {}

    def update_generator(self, scored: Sequence[ScoredRollout], *, iteration: int, text: TextBlocks | None) -> Pending:
        self.num_taught.append(len(scored))
        return super().update_generator(scored, iteration=iteration, text=text)


@pytest.mark.parametrize("loss", ["binary_cross_entropy", "bradley_terry"])
def test_they_are_left_out_of_discriminator_updates_only(tmp_path: Path, loss: str) -> None:
    more = ["warmup.discriminator.steps=2", "discriminator.contrast_weight=1", f"discriminator.loss={loss}"]
    rate = "discriminator.updates_per_generator_update=2"
    roles = Recording()
    config = settings(*more, rate, "run.iterations=3", "discriminator.leave_out_liked=0.25")
    roles.needs = config.discriminator.needs
    run(config, roles, tmp_path)
    assert [update[0] for update in roles.updates] == [LEARNED] * 8
    assert roles.num_taught == [8] * 3
    if loss == "bradley_terry":
        assert {update[1:] for update in roles.updates} == {(6, True)}


def test_none_is_left_out_by_default(tmp_path: Path) -> None:
    roles = Recording()
    run(settings("run.iterations=2", "discriminator.updates_per_generator_update=1"), roles, tmp_path)
    assert [update[0] for update in roles.updates] == [list(range(8))] * 2
    assert len(roles.scored) == 2
