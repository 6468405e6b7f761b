"""Checkpoints written after an actor failure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from rlgaf_ray.data.storage import Place
from rlgaf_ray.loop.roles import Pending, PendingScores
from rlgaf_ray.testing import FakeRoles
from rlgaf_ray.types import Demonstration, Metrics, PolicyNetwork, Rollout, ScoredRollout
from tests.unit.loop.test_healing import ready, rows, run, settings

ITERATIONS = 8
NAMES = ("failed", "uninterrupted")
SMALL = ("guard.action=warn", f"run.iterations={ITERATIONS}", "discriminator.updates_per_generator_update=0.5")


class FailingRoles(FakeRoles):
    """An actor fails in iteration 5 with ``checkpoint.every=3``; ``where``: before or after the updates started."""

    def __init__(self, where: str, *, complete: bool = True) -> None:
        super().__init__()
        self.where = where
        self.complete = complete
        self.num_scored = 0

    def start_score(self, rollouts: Sequence[Rollout], demonstrations: Sequence[Demonstration]) -> PendingScores:
        self.num_scored += 1
        fails = self.where == "before" and self.num_scored == 5
        return self._fail if fails else super().start_score(rollouts, demonstrations)

    def _fail(self) -> tuple[list[ScoredRollout], list[float]]:
        raise RuntimeError("rollout worker 0 died")

    def push_weights(self, policy_version: int, *, network: PolicyNetwork = "policy") -> Pending:
        if self.where == "after" and policy_version == 5:
            raise RuntimeError("rollout worker 0 died")
        return super().push_weights(policy_version, network=network)

    def rescue(self, folder: Place) -> None:
        if not self.complete:
            raise RuntimeError("no surviving rank holds the full learner")
        super().rescue(folder)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_the_last_completed_iteration_is_saved_and_resumed_exactly(tmp_path: Path, mode: str) -> None:
    config = settings(*SMALL, f"schedule.mode={mode}", "schedule.max_staleness=1")
    run(config, FakeRoles(), tmp_path / "uninterrupted")
    loop, callback = ready(config, FailingRoles("before"), tmp_path / "failed")
    with pytest.raises(RuntimeError, match="rollout worker 0 died"):
        loop.run()
    loop.rescue()
    assert callback.messages == ["iteration 4 was saved"]
    assert (tmp_path / "failed/checkpoints/latest").read_text() == "step_000004\n"
    run(config, FakeRoles(), tmp_path / "failed", resume=True)
    assert without_staleness(tmp_path / "failed") == without_staleness(tmp_path / "uninterrupted")
    ends = [json.loads((tmp_path / name / "checkpoints/step_000008/state.json").read_text()) for name in NAMES]
    assert ends[0]["streams"] == ends[1]["streams"] and ends[0]["held_out"] == ends[1]["held_out"]


@pytest.mark.parametrize(("complete", "where"), [(True, "after"), (False, "before")])
def test_an_incomplete_state_is_not_saved(tmp_path: Path, complete: bool, where: str) -> None:
    losing = FailingRoles(where, complete=complete)
    loop, callback = ready(settings(*SMALL), losing, tmp_path)
    with pytest.raises(RuntimeError, match="rollout worker 0 died"):
        loop.run()
    loop.rescue()
    expected = "iteration 4 could not be saved: no surviving rank"
    assert len(callback.messages) == (where == "before") and all(
        text.startswith(expected) for text in callback.messages
    )
    assert (tmp_path / "checkpoints/latest").read_text() == "step_000003\n"


def test_a_failure_during_an_evaluation_saves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The actors hold iteration 5, and the state that a checkpoint needs is that of iteration 4."""
    loop, callback = ready(settings(*SMALL, "evaluation.every=5"), FakeRoles(), tmp_path)
    evaluate = loop.evaluate

    def failing() -> tuple[Metrics, list[str]]:
        if loop.iteration == 5:
            raise RuntimeError("rollout worker 0 died")
        return evaluate()

    monkeypatch.setattr(loop, "evaluate", failing)
    with pytest.raises(RuntimeError, match="rollout worker 0 died"):
        loop.run()
    loop.rescue()
    assert callback.messages == []
    assert (tmp_path / "checkpoints/latest").read_text() == "step_000003\n"


def without_staleness(folder: Path) -> list[dict[str, float]]:
    """A restarted run samples from the newest weights, like a new run."""
    return [{name: value for name, value in row.items() if name != "rollout/staleness"} for row in rows(folder)]


def test_an_interrupted_save_is_completed_by_the_surviving_ranks(tmp_path: Path) -> None:
    """A rank fails while the checkpoint of the best iteration so far is written."""

    class LosingARank(FakeRoles):
        def save(self, folder: Place) -> None:
            raise RuntimeError("rank 1 of the learner died")

        def rescue(self, folder: Place) -> None:
            super().save(folder)

    loop, callback = ready(settings(*SMALL, "evaluation.every=3"), LosingARank(), tmp_path)
    with pytest.raises(RuntimeError, match="rank 1 of the learner died"):
        loop.run()
    loop.rescue()
    assert callback.messages == ["iteration 3 was saved"]
    assert [(tmp_path / "checkpoints" / name).read_text() for name in ("latest", "best")] == ["step_000003\n"] * 2
