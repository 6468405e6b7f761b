"""Choice of the weight transfer backend by placement: the fastest possible one, or an error."""

from __future__ import annotations

from typing import Any

import pytest

from rlgaf_ray.errors import UserError
from rlgaf_ray.weights.choice import Choice, Site, choose_transfer, current_site

CPU = Site("a")
ONE, TWO, THREE = (Site("a", (card,)) for card in ("GPU-1", "GPU-2", "GPU-3"))
PAIR = Site("b", ("GPU-4", "GPU-5"))


def choose(
    asked: Any,
    learners: list[Site],
    engines: list[Site],
    *,
    device_transfer: bool = True,
    together: bool = True,
    copies: bool = False,
) -> Choice:
    return choose_transfer(
        asked,
        learners=learners,
        engines=engines,
        device_transfer=device_transfer,
        together=together,
        copies=copies,
    )


@pytest.mark.parametrize(
    ("learners", "engines", "backend", "reason"),
    [
        ([CPU], [CPU, CPU], "object_store", "learner or engines run on CPU"),
        ([CPU], [ONE], "object_store", "learner or engines run on CPU"),
        ([ONE], [ONE], "ipc", "every engine shares its GPU with a learner"),
        ([ONE], [ONE, ONE], "ipc", "every engine shares its GPU with a learner"),
        ([ONE, TWO], [TWO, ONE], "ipc", "every engine shares its GPU with a learner"),
        ([ONE], [TWO, THREE], "nccl", "learner and engines are on separate GPUs"),
        ([ONE], [PAIR], "nccl", "learner and engines are on separate GPUs"),
        # the learner's rank 1 is not in the broadcast group
        ([ONE, TWO], [TWO, THREE], "nccl", "learner and engines are on separate GPUs"),
        (
            [ONE],
            [ONE, TWO],
            "object_store",
            "rollout worker 1 is on a GPU without a learner; "
            "the learner shares its GPU with a rollout worker, and NCCL needs one process per GPU",
        ),
        (
            [ONE],
            [TWO, TWO],
            "object_store",
            "rollout worker 0 is on a GPU without a learner; "
            "two rollout workers share a GPU, and NCCL needs one process per GPU",
        ),
    ],
)
def test_auto_chooses_the_fastest_possible_backend(
    learners: list[Site], engines: list[Site], backend: str, reason: str
) -> None:
    choice = choose("auto", learners, engines)
    assert (choice.backend, choice.reason) == (backend, reason)
    assert str(choice) == f"weight transfer over {backend}: {reason}"


LEAK = (
    "rollout workers, and the copies made for a push (merged adapters, gathered shards) are freed only with exactly one"
)
NCCL_SHARES = "the learner shares its GPU with a rollout worker, and NCCL needs one process per GPU"


@pytest.mark.parametrize(
    ("learners", "engines", "backend", "reason"),
    [
        ([ONE], [ONE], "ipc", "every engine shares its GPU with a learner"),
        ([ONE, TWO], [TWO, ONE], "ipc", "every engine shares its GPU with a learner"),
        ([Site("b", ("GPU-4",)), Site("b", ("GPU-5",))], [PAIR], "ipc", "every engine shares its GPU with a learner"),
        ([ONE], [ONE, ONE], "object_store", f"the GPU of learner rank 0 has 2 {LEAK}; {NCCL_SHARES}"),
        ([ONE, TWO], [ONE], "object_store", f"the GPU of learner rank 1 has no {LEAK}; {NCCL_SHARES}"),
        ([ONE, TWO], [TWO], "nccl", f"the GPU of learner rank 0 has no {LEAK}"),
        ([ONE], [TWO], "nccl", "learner and engines are on separate GPUs"),
        ([CPU], [CPU, CPU], "object_store", "learner or engines run on CPU"),
    ],
)
def test_copies_made_for_a_push_need_exactly_one_engine_on_each_learners_gpu(
    learners: list[Site], engines: list[Site], backend: str, reason: str
) -> None:
    """torch would never free them otherwise, which needs a GPU to be seen."""
    choice = choose("auto", learners, engines, copies=True)
    assert (choice.backend, choice.reason) == (backend, reason)
    if reason.startswith("the GPU of learner rank"):
        with pytest.raises(UserError) as raised:
            choose("ipc", learners, engines, copies=True)
        obstacle = reason.partition(";")[0]
        assert str(raised.value) == f"weights.transfer=ipc is not possible here, {obstacle}: set weights.transfer=auto"
        choice = choose("auto", learners, engines)
        assert choice.backend == "ipc"


def test_an_engine_without_device_transfer_uses_the_object_store() -> None:
    choice = choose("auto", [ONE], [ONE], device_transfer=False)
    assert choice.backend == "object_store"
    assert choice.reason == "this rollout engine receives weights through host memory only"


def test_asynchronous_updates_use_the_object_store() -> None:
    choice = choose("auto", [ONE], [TWO], together=False)
    assert choice.backend == "object_store"
    assert choice.reason == "each engine updates its weights between its own requests"
    with pytest.raises(UserError, match=r"weights\.transfer=nccl is not possible here, each engine updates"):
        choose("nccl", [ONE], [TWO], together=False)


def test_a_possible_backend_is_used_as_configured() -> None:
    for asked, engine in (("object_store", TWO), ("nccl", TWO), ("ipc", ONE)):
        choice = choose(asked, [ONE], [engine])
        assert (choice.backend, choice.reason) == (asked, "set by weights.transfer")


@pytest.mark.parametrize(
    ("asked", "engine", "obstacle"),
    [
        ("nccl", ONE, "the learner shares its GPU with a rollout worker"),
        ("ipc", TWO, "rollout worker 0 is on a GPU without a learner"),
        ("nccl", CPU, "run on CPU"),
        ("ipc", CPU, "run on CPU"),
    ],
)
def test_an_impossible_backend_raises(asked, engine: Site, obstacle: str) -> None:
    with pytest.raises(UserError, match=f"weights.transfer={asked} is not possible here.*{obstacle}.*=auto"):
        choose(asked, [ONE], [engine])


def test_a_process_on_cpu_has_no_gpus() -> None:
    site = current_site("cpu")
    assert site.gpus == ()
    assert site.node
