"""The dispatcher with fake workers: each returns the seed as its response and reports the version it loaded last."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from rlgaf_ray.actors.dispatch import Dispatcher, Part, expected_tokens, split
from rlgaf_ray.types import Metrics, Prompt, Rollout, SamplingSettings
from tests.patience import HANGS_AFTER, wait_until

SAMPLING = SamplingSettings(max_new_tokens=10, samples_per_prompt=2)


class Worker:
    def __init__(self) -> None:
        self.version = -1
        self.loads: list[int] = []
        self.parts: list[list[int]] = []  # prompt ids of each part
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Event()

    def __call__(self, update: Any | None, part: Part | None) -> tuple[Metrics, list[Rollout]]:
        if update is not None:
            self.version = update
            self.loads.append(update)
        if part is None:
            return {"load_seconds": float(self.version)}, []
        self.parts.append([prompt.prompt_id for prompt in part.prompts])
        self.started.set()
        assert self.gate.wait(HANGS_AFTER)
        share = part.sampling.samples_per_prompt
        assert len(part.seeds) == share * len(part.prompts)
        return {"load_seconds": float(self.version)}, [
            Rollout(
                part.prompts[index // share].prompt_id,
                np.array([1], np.int32),
                np.array([seed], np.int32),
                np.zeros(1, np.float32),
                "length",
                self.version,
            )
            for index, seed in enumerate(part.seeds)
        ]


def prompts_of(*lengths: int) -> list[Prompt]:
    return [Prompt(row, np.zeros(length, np.int32)) for row, length in enumerate(lengths)]


@pytest.fixture
def build() -> Iterator[Any]:
    built: list[Dispatcher] = []

    def make(workers: Sequence[Any], requests_per_worker: int | None = None) -> Dispatcher:
        built.append(Dispatcher(workers, requests_per_worker=requests_per_worker))
        return built[-1]

    yield make
    for dispatcher in built:
        dispatcher.close()
        assert not any(thread.is_alive() for thread in dispatcher.threads)


def test_expected_tokens_and_split_boundaries() -> None:
    """Each prompt counts once, plus 10 tokens for each of 2 samples; the last prompt allows 4 tokens only."""
    prompts = [*prompts_of(3, 5), Prompt(2, np.zeros(7, np.int32), max_new_tokens=4)]
    assert expected_tokens(prompts, SAMPLING) == [23, 25, 15]
    assert split([1, 1, 1, 3], 2) == [0, 3, 4]
    assert split([4, 1, 1, 2], 2) == [0, 1, 4]
    assert split([5, 5], 4) == [0, 0, 1, 2, 2]  # boundaries are rounded to whole prompts; start() skips empty parts
    assert split([], 2) == [0, 0, 0]


@pytest.mark.parametrize("num_parts", [1, 2, 3, 7])
def test_equal_prompts_are_split_evenly(num_parts: int) -> None:
    for count in (1, 5, 16, 33):
        expected = np.linspace(0, count, num_parts + 1).round().astype(int).tolist()
        assert split([31] * count, num_parts) == expected


def test_rollouts_keep_the_prompt_order_for_any_worker_timing(build) -> None:
    def sleepy(worker: Worker, delays: random.Random):
        def call(update: Any | None, part: Part | None):
            time.sleep(delays.random() * 0.004)
            return worker(update, part)

        return call

    workers = [Worker() for _ in range(3)]
    dispatcher = build([sleepy(worker, random.Random(seed)) for seed, worker in enumerate(workers)], 4)
    rng = np.random.default_rng(0)
    pending = [
        dispatcher.start(prompts_of(*rng.integers(1, 40, 24)), SAMPLING, list(range(first, first + 48)))
        for first in (0, 1000, 2000)
    ]
    for first, wait in zip((0, 1000, 2000), pending, strict=True):
        rollouts, seconds = wait()
        assert [int(rollout.response_ids[0]) for rollout in rollouts] == list(range(first, first + 48))
        assert [rollout.prompt_id for rollout in rollouts] == [row for row in range(24) for _ in range(2)]
        assert 0 < seconds < HANGS_AFTER
    assert sum(len(worker.parts) for worker in workers) == 3 * 12
    assert all(part == list(range(part[0], part[-1] + 1)) for worker in workers for part in worker.parts)


def test_a_stalled_worker_holds_one_part_only(build) -> None:
    """8 parts for 2 workers: one stalls in its first part, the other samples seven."""
    slow, fast = Worker(), Worker()
    slow.gate.clear()
    fast.gate.clear()
    dispatcher = build([slow, fast], 4)
    wait = dispatcher.start(prompts_of(*[3] * 16), SAMPLING, list(range(32)))
    deadline = time.monotonic() + HANGS_AFTER
    while not (slow.parts and fast.parts) and time.monotonic() < deadline:
        time.sleep(0.001)
    fast.gate.set()
    while len(fast.parts) < 7 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert (len(slow.parts), len(fast.parts)) == (1, 7)
    slow.gate.set()
    assert [int(rollout.response_ids[0]) for rollout in wait()[0]] == list(range(32))


def test_the_longest_part_is_sampled_first(build) -> None:
    worker = Worker()
    worker.gate.clear()
    dispatcher = build([worker], 3)
    first = dispatcher.start(prompts_of(1), SAMPLING, [0, 1])
    assert worker.started.wait(HANGS_AFTER)
    # 21, 21, 80, 21, 21, 21, 21 tokens: the thirds end at 68.7 (third prompt) and 137.3 (fourth prompt)
    second = dispatcher.start(prompts_of(1, 1, 60, 1, 1, 1, 1), SAMPLING, list(range(14)))
    worker.gate.set()
    first(), second()
    assert worker.parts[1:] == [[2, 3], [4, 5, 6], [0, 1]]  # 101, 63 and 42


@pytest.mark.parametrize(
    ("num_rollouts", "num_workers", "parts"),
    [(64, 2, 2), (256, 1, 1), (16, 8, 8), (1024, 2, 4), (9999, 2, 8)],
)
def test_number_of_parts_depends_on_the_batch_size(build, num_rollouts: int, num_workers: int, parts: int) -> None:
    assert build([Worker() for _ in range(num_workers)])._num_parts(num_rollouts) == parts


def test_rollouts_use_the_weights_at_the_time_of_the_request(build) -> None:
    worker = Worker()
    worker.gate.clear()
    dispatcher = build([worker])
    dispatcher.push(0)()
    waits = [dispatcher.start(prompts_of(3), SAMPLING, [0, 1])]
    assert worker.started.wait(HANGS_AFTER)  # in the middle of a request
    pushes = [dispatcher.push(version) for version in (1, 2, 3)]
    waits.append(dispatcher.start(prompts_of(3), SAMPLING, [2, 3]))
    pushes.append(dispatcher.push(4))
    worker.gate.set()
    assert [{rollout.policy_version for rollout in wait()[0]} for wait in waits] == [{0}, {3}]
    assert [push()["load_seconds"] for push in pushes] == [3.0, 3.0, 3.0, 4.0]
    assert worker.loads == [0, 3, 4]  # 1 and 2 were skipped; 4 was loaded while idle


def test_dropped_parts_are_not_sampled(build) -> None:
    worker = Worker()
    worker.gate.clear()
    dispatcher = build([worker], 4)
    dispatcher.start(prompts_of(*[3] * 8), SAMPLING, list(range(16)))
    assert worker.started.wait(HANGS_AFTER)
    dispatcher.drop()
    wait = dispatcher.start(prompts_of(9), SAMPLING, [70, 71])
    worker.gate.set()
    assert [int(rollout.response_ids[0]) for rollout in wait()[0]] == [70, 71]
    assert len(worker.parts) == 2


def test_a_worker_failure_is_raised_in_every_waiting_caller(build) -> None:
    broken = Worker()
    broken.gate.clear()

    def fails(update: Any | None, part: Part | None):
        broken(update, part)
        raise RuntimeError("rollout worker 0 died")

    dispatcher = build([fails])
    wait = dispatcher.start(prompts_of(3), SAMPLING, [0, 1])
    assert broken.started.wait(HANGS_AFTER)
    behind, push = dispatcher.start(prompts_of(3), SAMPLING, [2, 3]), dispatcher.push(1)
    broken.gate.set()
    for ask in (wait, behind, push, lambda: dispatcher.start(prompts_of(3), SAMPLING, [4, 5])):
        with pytest.raises(RuntimeError, match="rollout worker 0 died"):
            ask()


def test_an_absent_worker_is_not_waited_for_and_the_others_sample_its_part(build) -> None:
    away, other = Worker(), Worker()
    away.gate.clear()
    taken: list[Part] = []

    def call(update: Any | None, part: Part | None) -> tuple[Metrics, list[Rollout]]:
        if part is not None and not taken:
            taken.append(part)
            metrics, _ = away(update, part)
            return metrics, []
        return away(update, part)

    dispatcher = build([call, other], 1)
    dispatcher.push(0)()
    other.gate.clear()  # so that both workers take one of the two parts
    rollouts = dispatcher.start(prompts_of(3, 3), SAMPLING, [0, 1, 2, 3])
    assert away.started.wait(HANGS_AFTER)
    push = dispatcher.push(1)
    other.gate.set()
    wait_until(lambda: other.loads == [0, 1], "load by the other worker, now idle")
    dispatcher.leave(0, taken[0])
    assert push() == {"load_seconds": 1.0}
    assert [int(rollout.response_ids[0]) for rollout in rollouts()[0]] == [0, 1, 2, 3]
    assert {rollout.policy_version for rollout in rollouts()[0]} == {0}  # as if the worker had not failed
    assert sorted(other.parts) == [[0], [1]]
    assert dispatcher.push(2)() == {"load_seconds": 2.0}
    assert other.loads in ([0, 1, 0, 2], [0, 1, 0, 1, 2])
    away.gate.set()
    wait_until(lambda: away.loads == [0, 2], "load by the worker that is back")
    assert dispatcher.push(3)() == {"load_seconds": 3.0}
    assert away.loads == [0, 2, 3]  # a push waits for it again


def test_an_empty_request_returns_no_rollouts(build) -> None:
    assert build([Worker()]).start([], SAMPLING, [])() == ([], 0.0)
