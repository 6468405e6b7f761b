"""Replacements of rollout workers that wait for resources. Actors and Ray's answers are fakes."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rlgaf_ray.actors import placement, pool
from rlgaf_ray.actors.answers import ActorFailure
from rlgaf_ray.actors.layout import Placement
from rlgaf_ray.actors.pool import RolloutPool
from rlgaf_ray.actors.recovery import Process, Recoveries, TooManyFailures
from rlgaf_ray.config.cluster import ClusterSection
from rlgaf_ray.config.rollout import RolloutSection
from rlgaf_ray.types import Metrics, Prompt, Rollout, SamplingSettings
from tests.patience import HANGS_AFTER, wait_until

SAMPLING = SamplingSettings(max_new_tokens=1, samples_per_prompt=1)
PROMPTS = [Prompt(row, np.zeros(2, np.int32)) for row in range(4)]
WAITS = re.compile(
    r"rollout worker (\d) has had no resources for (.*) s: it asks for 1 CPUs and 0 GPUs, and the cluster has 2 CPUs "
    r"and 0 GPUs free: (.*)"
)


class FakeWorker:
    """Mimics a Ray actor handle; its references are (worker, method, arguments)."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead = False
        self.version = -1

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments: (self, method, arguments))


class Fakes:
    """A pool of fake workers; ``room`` tells whether a replacement is placed, as Ray's answers do."""

    def __init__(self, num_workers: int, max_recoveries: int) -> None:
        self.room, self.failed = threading.Event(), threading.Event()
        self.messages: list[str] = []
        self.sampled_by: list[str] = []
        settings = ClusterSection(max_recoveries=max_recoveries, timeout_seconds=0.02)
        self.recoveries = Recoveries(settings, self.messages.append)
        self.created: list[FakeWorker] = []
        group: Any = SimpleNamespace(wait=lambda seconds: self.room.is_set(), bundle_specs=[{"CPU": 1.0}] * 9)
        plan = Placement(num_workers, cpus_per_actor=1.0, gpus_per_actor=0.0, threads=1, rollout_threads=1)
        answers: Any = SimpleNamespace(names={}, get=self.get, get_all=lambda calls: [])
        self.pool = RolloutPool(
            self.new_worker, plan, group, answers, self.recoveries, RolloutSection(requests_per_worker=1)
        )
        answers.names |= self.pool.names
        self.pool.wait(self.pool.start("object_store", in_turn=False))
        weights: Any = SimpleNamespace(in_flight=False, in_object_store=True, loaded=self.loaded, push=self.push)
        self.pool.open(weights)

    def new_worker(self, index: int) -> FakeWorker:
        self.created.append(FakeWorker(f"worker {index}"))
        return self.created[-1]

    def get(self, worker: FakeWorker, method: str, ref: Any) -> Any:
        if method == "start":
            return Process("node", 1)
        if worker.dead:
            self.failed.set()
            raise ActorFailure(f"rollout {worker.name} died during {method}")
        if any(other.dead for other in self.created):
            assert self.failed.wait(HANGS_AFTER)  # the dead worker has taken a part too
        prompts, _, seeds = ref[2]
        self.sampled_by.append(worker.name)
        return [
            Rollout(prompt.prompt_id, np.array([1]), np.array([seed]), np.zeros(1), "length", worker.version)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]

    def push(self, version: int, network: str, dispatcher: Any) -> Any:
        return dispatcher.push(lambda worker: [worker.update_weights.remote(version)])

    def loaded(self, worker: FakeWorker, refs: list[Any]) -> Metrics:
        for _, _, (version,) in refs:
            if worker.dead:
                raise ActorFailure(f"rollout {worker.name} died during update_weights")
            worker.version = version
        return {"load_seconds": 1.0} if refs else {}

    def wait(self, refs: list[Any], timeout: float, fetch_local: bool) -> tuple[list[Any], list[Any]]:
        return (refs, []) if self.room.wait(timeout) else ([], refs)

    def sample(self) -> list[tuple[int, int]]:
        """Return prompt id and policy version of each rollout."""
        rollouts, _ = self.pool.generate(PROMPTS, SAMPLING, list(range(len(PROMPTS))))()
        return [(rollout.prompt_id, rollout.policy_version) for rollout in rollouts]


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    built: list[Fakes] = []

    def make(num_workers: int, max_recoveries: int) -> Fakes:
        built.append(Fakes(num_workers, max_recoveries))
        monkeypatch.setattr(pool, "ray", SimpleNamespace(wait=built[-1].wait, kill=lambda worker: None))
        return built[-1]

    monkeypatch.setattr(placement, "free_resources", lambda: "2 CPUs and 0 GPUs")
    yield make
    for fakes in built:
        fakes.room.set()
        fakes.pool.close()


def test_a_run_continues_without_a_worker_whose_replacement_waits_for_resources(build) -> None:
    fakes = build(2, max_recoveries=1)  # the waits do not count: another worker is left
    fakes.pool.push(3, "policy")()
    fakes.created[0].dead = True
    assert fakes.sample() == [(row, 3) for row in range(4)]
    assert set(fakes.sampled_by) == {"worker 1"}
    assert fakes.pool.push(4, "policy")() == {"load_seconds": 1.0}
    assert fakes.sample() == [(row, 4) for row in range(4)]
    wait_until(lambda: len(fakes.messages) > 3, "repeated warning")
    assert fakes.messages[0] == "rollout worker 0 died during generate: replacing it; 2 prompts are sampled again"
    waits = [match.groups() for message in fakes.messages[1:] if (match := WAITS.fullmatch(message))]
    assert len(waits) == len(fakes.messages) - 1
    assert [waited for _, waited, _ in waits[:3]] == ["0.02", "0.04", "0.06"]
    assert {(worker, remedy) for worker, _, remedy in waits} == {("0", "continuing with 1 of 2 rollout workers")}
    fakes.room.set()
    wait_until(lambda: fakes.pool.workers[0].version == 4, "newest weights in the replacement")
    assert len(fakes.created) == 3  # the waiting replacement is not replaced
    assert fakes.recoveries.take() == (1, 2, 0)
    assert not fakes.pool.unplaced and not fakes.pool.dispatcher.absent


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_run_without_any_rollout_worker_ends_with_the_missing_resources(build, num_workers: int) -> None:
    fakes = build(num_workers, max_recoveries=4)
    for worker in fakes.created:
        worker.dead = True
    ended = r"^rollout worker . has had no resources for .*, and the cluster has .* free; gave up after 4 recoveries"
    with pytest.raises(TooManyFailures, match=ended):
        fakes.sample()
    remedies = {match[3] for message in fakes.messages if (match := WAITS.fullmatch(message))}
    assert "waiting, as no rollout worker is left" in remedies


def test_a_replacement_that_is_placed_may_start_slowly(build) -> None:
    """It has its resources, so that only the timeout of ``start`` applies."""
    fakes = build(1, max_recoveries=1)
    fakes.pool.group.wait = lambda seconds: True
    fakes.created[0].dead = True
    assert len(fakes.sample()) == 4
    assert len(fakes.messages) == 1
