"""The way of new weights, by placement: what is possible, what is fastest, what is refused."""

from __future__ import annotations

import pytest

from rlgaf_ray.weights.choice import Site, choose_transfer, current_site

CPU = Site("a")
ONE, TWO, THREE = (Site("a", (card,)) for card in ("GPU-1", "GPU-2", "GPU-3"))
PAIR = Site("b", ("GPU-4", "GPU-5"))


@pytest.mark.parametrize(
    ("learners", "engines", "backend", "reason"),
    [
        ([CPU], [CPU, CPU], "object_store", "learner or engines compute on CPU"),
        ([CPU], [ONE], "object_store", "learner or engines compute on CPU"),
        ([ONE], [ONE], "ipc", "every engine shares its GPU with a learner"),
        ([ONE], [ONE, ONE], "ipc", "every engine shares its GPU with a learner"),
        ([ONE, TWO], [TWO, ONE], "ipc", "every engine shares its GPU with a learner"),
        ([ONE], [TWO, THREE], "nccl", "learner and engines have GPUs of their own"),
        ([ONE], [PAIR], "nccl", "learner and engines have GPUs of their own"),
        # a second rank of the learner is no member of the broadcast
        ([ONE, TWO], [TWO, THREE], "nccl", "learner and engines have GPUs of their own"),
        (
            [ONE],
            [ONE, TWO],
            "object_store",
            "rollout worker 1 has a GPU that no learner is on; "
            "the learner shares its GPU with a rollout worker, and NCCL takes one process a GPU",
        ),
        (
            [ONE],
            [TWO, TWO],
            "object_store",
            "rollout worker 0 has a GPU that no learner is on; "
            "two rollout workers share a GPU, and NCCL takes one process a GPU",
        ),
    ],
)
def test_auto_takes_the_fastest_that_the_placement_allows(
    learners: list[Site], engines: list[Site], backend: str, reason: str
) -> None:
    choice = choose_transfer("auto", learners=learners, engines=engines, device_transfer=True, together=True)
    assert (choice.backend, choice.reason) == (backend, reason)
    assert str(choice) == f"new weights reach the engines by {backend}: {reason}"


def test_an_engine_without_device_transfer_takes_weights_from_memory() -> None:
    choice = choose_transfer("auto", learners=[ONE], engines=[ONE], device_transfer=False, together=True)
    assert choice.backend == "object_store"
    assert choice.reason == "this rollout engine takes weights from memory only"


def test_engines_that_take_weights_in_their_own_time_take_them_from_memory() -> None:
    choice = choose_transfer("auto", learners=[ONE], engines=[TWO], device_transfer=True, together=False)
    assert choice.backend == "object_store"
    assert choice.reason == "each engine takes weights between requests of its own"
    with pytest.raises(ValueError, match=r"weights\.transfer=nccl is not possible here, each engine takes weights"):
        choose_transfer("nccl", learners=[ONE], engines=[TWO], device_transfer=True, together=False)


def test_what_is_asked_for_and_possible_is_taken() -> None:
    for asked, engine in (("object_store", TWO), ("nccl", TWO), ("ipc", ONE)):
        choice = choose_transfer(asked, learners=[ONE], engines=[engine], device_transfer=True, together=True)  # type: ignore[arg-type]
        assert (choice.backend, choice.reason) == (asked, "weights.transfer asks for it")


@pytest.mark.parametrize(
    ("asked", "engine", "obstacle"),
    [
        ("nccl", ONE, "the learner shares its GPU with a rollout worker"),
        ("ipc", TWO, "rollout worker 0 has a GPU that no learner is on"),
        ("nccl", CPU, "compute on CPU"),
        ("ipc", CPU, "compute on CPU"),
    ],
)
def test_what_is_asked_for_and_impossible_is_refused(asked, engine: Site, obstacle: str) -> None:
    with pytest.raises(ValueError, match=f"weights.transfer={asked} is not possible here.*{obstacle}.*=auto"):
        choose_transfer(asked, learners=[ONE], engines=[engine], device_transfer=True, together=True)


def test_a_process_on_cpu_has_no_gpus() -> None:
    site = current_site("cpu")
    assert site.gpus == ()
    assert site.node
