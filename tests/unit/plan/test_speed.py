from __future__ import annotations

import pytest

from rlgaf_ray.plan.shape import ModelShape
from rlgaf_ray.plan.speed import (
    Push,
    Rates,
    Work,
    bottleneck,
    discriminator_seconds,
    driver_seconds,
    forward_flops,
    generator_seconds,
    push,
    rollout_seconds,
)

TOY = ModelShape(4000, 3, 8, 2, 2, 4, 32, False, 100, True)
WORK = Work(rollouts=2, prompt_tokens=2, response_tokens=3, demonstrations=4, discriminator_updates=0.5)
RATES = Rates(flops=1e6, memory=1e6, network=100.0, host=1000.0, step_seconds=0.0, token_seconds=0.0)
FLOPS, WITHOUT_HEAD = 2 * (3 * 768 + 800) + 4 * 3 * 5 * 8, 2 * 3 * 768 + 4 * 3 * 5 * 8


def test_flops_of_a_token() -> None:
    assert forward_flops(TOY, length=5) == FLOPS == 6688
    assert forward_flops(TOY, length=5, head=False) == WITHOUT_HEAD == 5088


def test_updates() -> None:
    # Ten tokens; forward and backward (3) and the reference (1); half of it on two devices.
    assert generator_seconds(TOY, WORK, RATES, devices=1) == pytest.approx(10 * 4 * 6688 / 1e6)
    assert generator_seconds(TOY, WORK, RATES, devices=2) == pytest.approx(10 * 4 * 6688 / 2e6)
    # Two rows scored; half an update of six rows, three passes each: 11 rows of five tokens.
    assert discriminator_seconds(TOY, WORK, RATES, devices=1) == pytest.approx(11 * 5 * 5088 / 1e6)


def test_a_decoding_step_takes_the_longer_of_memory_reads_and_compute() -> None:
    per_token = forward_flops(TOY, length=3)  # the mean length, 3.5, in whole tokens
    read = 4 * 3104 + 2 * 3.5 * (2 * 3 * 8 * 4)
    prefill = 2 * 2 * per_token / 1e6
    assert 2 * per_token < read
    expected = prefill + 3 * read / 1e6
    assert rollout_seconds(TOY, WORK, RATES, engines=1, cores=1, element=4) == pytest.approx(expected)
    slow = Rates(flops=1e5, memory=1e6, network=1, host=1, step_seconds=0.1, token_seconds=0.01)
    expected = 2 * 2 * per_token / 1e5 + 3 * (2 * per_token / 1e5 + 0.1 + 0.02)
    assert rollout_seconds(TOY, WORK, slow, engines=1, cores=1, element=4) == pytest.approx(expected)


def test_two_engines_split_the_batch() -> None:
    per_token = forward_flops(TOY, length=3)
    slow = Rates(flops=1e5, memory=1e9, network=1, host=1, step_seconds=0.0, token_seconds=0.0)
    expected = (2 + 3) * per_token / 1e5
    assert rollout_seconds(TOY, WORK, slow, engines=2, cores=1, element=4) == pytest.approx(expected)


def test_the_traffic_of_a_push_per_link() -> None:
    shared = {"element": 4, "learner_ranks": 4, "other_nodes": 3, "shards": 2}
    store = push(1000, split=True, backend="object_store", **shared)
    assert store == Push("object_store", 4000, 3000, 12000, 4000, 2000)
    ring = push(1000, split=False, backend="nccl", **shared)
    assert ring == Push("nccl", 4000, 0, 4000, 4000, 2000)
    assert ring.seconds(RATES) == pytest.approx(4000 / 100 + 2000 / 1000)
    alone = push(1000, element=4, learner_ranks=1, other_nodes=0, shards=1, split=False, backend="object_store")
    assert alone == Push("object_store", 4000, 0, 0, 0, 4000)


def test_a_push_over_ipc_leaves_no_gpu_but_for_the_gather() -> None:
    """Each engine reads and writes its weights on its own GPU, also on other nodes."""
    found = push(1000, element=4, learner_ranks=4, split=True, other_nodes=1, shards=1, backend="ipc")
    assert found == Push("ipc", 4000, 3000, 0, 0, 4000)
    assert found.seconds(RATES) == pytest.approx(3000 / 100 + 2 * 4000 / 1e6)


def test_driver_and_bottleneck() -> None:
    assert driver_seconds(WORK) == pytest.approx(0.0202)
    assert bottleneck({"a": 1.0, "b": 3.0}) == ("b", 0.75)
