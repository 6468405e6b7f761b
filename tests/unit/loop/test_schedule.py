"""The full loop over fake roles that work asynchronously, behind the real dispatcher."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlgaf_ray.actors.dispatch import Dispatcher, Part
from rlgaf_ray.config import Config
from rlgaf_ray.data.storage import Place
from rlgaf_ray.loop.roles import Pending, PendingRollouts, PendingScores
from rlgaf_ray.testing import FakeRoles
from rlgaf_ray.types import (
    Demonstration,
    Metrics,
    PolicyNetwork,
    Prompt,
    Rollout,
    SamplingSettings,
    ScoredRollout,
    TextBlocks,
)
from tests.patience import HANGS_AFTER
from tests.unit.loop.test_healing import rows, run, settings


class BusyRoles(FakeRoles):
    """A learner, a discriminator and three engines, each a thread that works in the order it was asked.

    Weights are the number of updates that they have had: what an engine says of its version is what it was given.
    """

    def __init__(self, *, longest: float = 0.0, onset: int | None = None) -> None:
        super().__init__(onset=onset)
        self.longest = longest
        self.delays = random.Random(0)
        self.learner, self.judge = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self.dispatcher = Dispatcher([self._engine() for _ in range(3)], requests_per_worker=2)
        self.updates = 0
        self.learned: list[list[int]] = []  # prompts of each update
        self.begun: dict[str, threading.Event] = {}

    def close(self) -> None:
        self.learner.shutdown()
        self.judge.shutdown()
        self.dispatcher.close()

    def work(self) -> None:
        time.sleep(self.delays.random() ** 4 * self.longest)  # mostly short, now and then long

    def event(self, name: str) -> threading.Event:
        return self.begun.setdefault(name, threading.Event())

    def _engine(self):
        held = [0]

        def call(update: Future[int] | None, part: Part | None) -> tuple[Metrics, list[Rollout]]:
            if update is not None:
                held[0] = self.take(update.result())
            if part is None:
                return {}, []
            self.event(f"rollouts {held[0]}").set()
            self.work()
            share = part.sampling.samples_per_prompt
            return {}, [
                Rollout(
                    part.prompts[index // share].prompt_id,
                    np.array([1], np.int32),
                    np.array([seed % 97, seed % 89], np.int32),
                    np.zeros(2, np.float32),
                    "length",
                    held[0],
                )
                for index, seed in enumerate(part.seeds)
            ]

        return call

    def take(self, version: int) -> int:
        return version

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingSettings, seeds: Sequence[int]) -> list[Rollout]:
        return self.start_generate(prompts, sampling, seeds)()[0]

    def start_generate(
        self, prompts: Sequence[Prompt], sampling: SamplingSettings, seeds: Sequence[int]
    ) -> PendingRollouts:
        return self.dispatcher.start(prompts, sampling, seeds)

    def drop_rollouts(self) -> None:
        self.dispatcher.drop()

    def start_score(self, rollouts: Sequence[Rollout], demonstrations: Sequence[Demonstration]) -> PendingScores:
        def score() -> tuple[list[ScoredRollout], list[float]]:
            self.event(f"score {rollouts[0].policy_version}").set()
            self.work()
            return super(BusyRoles, self).start_score(rollouts, demonstrations)()

        return self.judge.submit(score).result

    def update_discriminator(
        self, real: Sequence[Demonstration], fake: Sequence[Rollout], contrast: Sequence[Demonstration]
    ) -> Pending:
        def update() -> Metrics:
            self.work()
            return {}

        return self.judge.submit(update).result

    def update_generator(self, scored: Sequence[ScoredRollout], *, iteration: int, text: TextBlocks | None) -> Pending:
        answer = super().update_generator(scored, iteration=iteration, text=text)
        self.learned.append([item.rollout.prompt_id for item in scored])

        def update() -> Metrics:
            self.during_update(iteration + 1)
            self.work()
            self.updates = iteration + 1
            return answer()

        return self.learner.submit(update).result

    def during_update(self, iteration: int) -> None: ...

    def push_weights(self, policy_version: int, *, network: PolicyNetwork = "policy") -> Pending:
        def weights() -> int:
            assert self.updates == policy_version
            return policy_version

        return self.dispatcher.push(self.learner.submit(weights))

    def load(self, folder: Place, *, discriminator_version: int) -> None:
        super().load(folder, discriminator_version=discriminator_version)
        self.updates = self.state["moments"]


def asynchronous(max_staleness: int, *more: str) -> Config:
    return settings("schedule.mode=async", f"schedule.max_staleness={max_staleness}", "guard.action=warn", *more)


def train(config: Config, roles: BusyRoles, folder: Path, **more: Any) -> list[dict[str, float]]:
    try:
        run(config, roles, folder, **more)
    finally:
        roles.close()
    return rows(folder)[1:]


def prompts_in_order(folder: Path, iterations: int) -> list[list[int]]:
    """Prompts of a synchronous run."""
    roles = BusyRoles()
    train(settings(f"run.iterations={iterations}", "guard.action=warn"), roles, folder)
    return roles.learned


@pytest.mark.parametrize("max_staleness", [1, 2, 4])
def test_staleness_never_exceeds_the_limit(tmp_path: Path, max_staleness: int) -> None:
    """200 iterations with work of random duration: versions depend on the slots only."""
    roles = BusyRoles(longest=0.006)
    config = asynchronous(
        max_staleness, "run.iterations=200", "checkpoint.every=50", "discriminator.updates_per_generator_update=0.4"
    )
    logged = train(config, roles, tmp_path / "async")
    assert [row["rollout/staleness"] for row in logged] == [min(iteration, max_staleness) for iteration in range(200)]
    assert roles.learned == prompts_in_order(tmp_path / "sync", 200)  # each prompt once, in its order


def test_the_update_overlaps_with_the_next_rollouts_and_scores(tmp_path: Path) -> None:
    """An update that ends only once both have started: run one after the other, this would deadlock."""

    class Waiting(BusyRoles):
        def during_update(self, iteration: int) -> None:
            if 2 <= iteration < 12:  # of the batch that the next iteration learns from, whose version is this one's - 1
                assert self.event(f"rollouts {iteration - 1}").wait(HANGS_AFTER)
                assert self.event(f"score {iteration - 1}").wait(HANGS_AFTER)

    config = asynchronous(1, "run.iterations=12", "discriminator.updates_per_generator_update=1")
    assert len(train(config, Waiting(), tmp_path)) == 12


@pytest.mark.parametrize("stop_after", [4, 7])
@pytest.mark.parametrize("max_staleness", [1, 3])
def test_a_resume_neither_skips_nor_repeats_prompts(tmp_path: Path, max_staleness: int, stop_after: int) -> None:
    config = asynchronous(max_staleness, "run.iterations=12", "checkpoint.every=0")
    first, second = BusyRoles(longest=0.002), BusyRoles(longest=0.002)
    train(config, first, tmp_path / "resumed", stop_after=stop_after)
    logged = train(config, second, tmp_path / "resumed", resume=True)
    assert len(first.learned) == stop_after
    assert first.learned + second.learned == prompts_in_order(tmp_path / "uninterrupted", 12)
    # Batches made ahead were dropped: their prompts were sampled again, from the policy of the checkpoint.
    staleness = [row["rollout/staleness"] for row in logged]
    assert staleness[stop_after:] == [min(index, max_staleness) for index in range(12 - stop_after)]


def test_a_rollback_drops_batches_made_ahead(tmp_path: Path) -> None:
    """Healthy until 13, so iteration 19 rolls back to checkpoint 12, with two batches made ahead."""
    roles = BusyRoles(longest=0.002, onset=14)
    logged = train(asynchronous(2, "guard.action=heal", "run.iterations=24"), roles, tmp_path / "rolled_back")
    order = prompts_in_order(tmp_path / "calm", 24)
    assert roles.learned == order[:19] + order[12:]
    assert [row["rollout/staleness"] for row in logged[12:]] == [0, 1] + [2] * 10


def test_engines_that_skip_a_version_are_detected(tmp_path: Path) -> None:
    class Deaf(BusyRoles):
        def take(self, version: int) -> int:
            return 0 if version == 3 else version

    with pytest.raises(AssertionError, match="rollouts are 4 versions old, at most 1 allowed"):
        train(asynchronous(1), Deaf(), tmp_path)


def test_synchronous_roles_give_the_same_versions(tmp_path: Path) -> None:
    run(asynchronous(2, "run.iterations=6"), FakeRoles(), tmp_path)
    assert [row["rollout/staleness"] for row in rows(tmp_path)[1:]] == [0, 1, 2, 2, 2, 2]


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_resumed_run_scores_the_same_held_out_demonstrations(tmp_path: Path, mode: str) -> None:
    class Recording(FakeRoles):
        def __init__(self) -> None:
            super().__init__()
            self.asked: list[list[int]] = []

        def start_score(self, rollouts: Sequence[Rollout], demonstrations: Sequence[Demonstration]) -> PendingScores:
            self.asked.append([int(item.prompt_ids[0]) for item in demonstrations])
            return super().start_score(rollouts, demonstrations)

    config = asynchronous(2, f"schedule.mode={mode}", "run.iterations=9", "discriminator.held_out=20")
    first, second = Recording(), Recording()
    run(config, first, tmp_path, stop_after=4)
    _, _, loop = run(config, second, tmp_path, resume=True)
    held_out = loop.train_step.draws.held_out_rows.tolist()
    expected = [[held_out[(16 * turn + row) % 20] for row in range(16)] for turn in range(9)]
    assert first.asked[:4] == expected[:4] and first.asked[4:] in ([], expected[4:5])  # one is requested ahead
    assert second.asked == expected[4:]
