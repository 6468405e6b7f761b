"""The loop over fake roles: updates are skipped while the discriminator overfits its demonstrations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from rlgaf_ray.config import Config
from rlgaf_ray.loop.roles import Pending, PendingScores
from rlgaf_ray.testing import FakeRoles
from rlgaf_ray.types import Demonstration, Rollout
from tests.unit.loop.test_healing import rows, run, settings

HELD_OUT = 8
RATE = "discriminator.updates_per_generator_update=1.5"


class Memorising(FakeRoles):
    """Overfits its demonstrations if it was trained in one of the last four iterations."""

    def __init__(self) -> None:
        super().__init__()
        self.updates: list[int] = []  # of each iteration
        self.asked: list[list[int]] = []

    def start_score(self, rollouts: Sequence[Rollout], demonstrations: Sequence[Demonstration]) -> PendingScores:
        self.asked.append([int(item.prompt_ids[0]) for item in demonstrations])
        overfit = any(self.updates[-4:])
        self.updates.append(0)
        scored = self.score(rollouts)  # all at -0.5
        logits = [-0.5] * HELD_OUT + [1.0 if overfit else -0.5] * (len(demonstrations) - HELD_OUT)
        return lambda: (scored, logits)

    def update_discriminator(
        self, real: Sequence[Demonstration], fake: Sequence[Rollout], contrast: Sequence[Demonstration]
    ) -> Pending:
        self.updates[-1] += 1
        return lambda: {}


def configured(*more: str) -> Config:
    base = [f"discriminator.held_out={HELD_OUT}", "guard.action=warn", "run.iterations=12", "checkpoint.every=0"]
    return settings(*base, RATE, *more)


def test_updates_are_skipped_while_the_gap_is_above_the_limit(tmp_path: Path) -> None:
    """With a window of one iteration the gap is 1 - 0.5 after recent training, else 0."""
    roles = Memorising()
    _, _, loop = run(configured("discriminator.overfit_gap=0.4"), roles, tmp_path)
    trains = ([1, 0, 0, 0, 0] * 3)[:12]
    due = [1, 2] * 6  # 1.5 per iteration
    logged = rows(tmp_path)[1:]
    assert roles.updates == [a * b for a, b in zip(trains, due, strict=True)]
    assert [row["discriminator/skipped_updates"] for row in logged] == [
        b - a * b for a, b in zip(trains, due, strict=True)
    ]
    assert [row["discriminator/overfit_gap"] for row in logged] == [0.5 * (1 - a) for a in trains]
    assert loop.train_step.discriminator_version == sum(roles.updates)
    trained = set(loop.train_step.draws.trained_rows.tolist())
    assert all(len(asked) == 2 * HELD_OUT and set(asked[HELD_OUT:]) <= trained for asked in roles.asked)


@pytest.mark.parametrize("limit", ["null", "0.5"])
def test_no_update_is_skipped_at_the_limit_or_without_one(tmp_path: Path, limit: str) -> None:
    roles = Memorising()
    run(configured(f"discriminator.overfit_gap={limit}"), roles, tmp_path)
    assert roles.updates == [1, 2] * 6
    assert all(len(asked) == (HELD_OUT if limit == "null" else 2 * HELD_OUT) for asked in roles.asked)
    found = {row.get("discriminator/skipped_updates") for row in rows(tmp_path)[1:]}
    assert found == {None if limit == "null" else 0.0}


def test_a_resumed_run_skips_the_same_updates(tmp_path: Path) -> None:
    class Numbered(FakeRoles):
        """The gap of iteration i is 0.5 or 0, by a pattern that a window of three iterations blurs."""

        def start_score(self, rollouts: Sequence[Rollout], demonstrations: Sequence[Demonstration]) -> PendingScores:
            scored = self.score(rollouts)
            high = self.version % 5 < 2
            half = len(demonstrations) // 2
            return lambda: (scored, [-0.5] * half + [1.0 if high else -0.5] * half)

    config = settings(
        "discriminator.held_out=20", "guard.action=warn", "run.iterations=12", "discriminator.overfit_gap=0.2", RATE
    )
    run(config, Numbered(), tmp_path / "uninterrupted")
    run(config, Numbered(), tmp_path / "resumed", stop_after=5)
    run(config, Numbered(), tmp_path / "resumed", resume=True)
    names = ("discriminator/overfit_gap", "discriminator/skipped_updates", "discriminator/updates")
    expected, resumed = (
        [[row[name] for name in names] for row in rows(tmp_path / each)[1:]] for each in ("uninterrupted", "resumed")
    )
    assert expected == resumed and {row[1] > 0 for row in expected} == {True, False}
