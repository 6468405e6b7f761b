"""Who is told what, and in which order, when weights go over GPUs. The actors are mocks: nothing is sent here."""

from __future__ import annotations

from typing import Any

from rlgaf_ray.actors.transfer import GpuTransfer
from rlgaf_ray.weights.nccl import Rendezvous


class MockActor:
    """Answers like Ray's handle: ``actor.method.remote(...)`` is written down and gives a reference."""

    def __init__(self, name: str, log: list[tuple[str, str, tuple, dict]], answers: dict[str, Any]) -> None:
        self.name, self.log, self.answers = name, log, answers

    def __getattr__(self, method: str) -> Any:
        class Remote:
            @staticmethod
            def remote(*args: Any, **options: Any) -> str:
                self.log.append((self.name, method, args, options))
                return f"{self.name}.{method}"

        return Remote


def cluster(backend: str, gpus_per_engine: int = 1):
    log: list[tuple[str, str, tuple, dict]] = []
    answers = {
        "learner.open_address": ("10.0.0.1", 4000),
        "worker 0.update_weights": {"megabytes": 1.0},
        "worker 1.update_weights": {"megabytes": 2.0},
    }
    learner = MockActor("learner", log, answers)
    workers = [MockActor(f"worker {index}", log, answers) for index in range(2)]
    waited: list[list[str]] = []

    def wait(calls) -> list[Any]:
        waited.append([f"{actor.name}.{method}" for actor, method, _ in calls])
        return [answers.get(ref) for _, _, ref in calls]

    transfer = GpuTransfer(backend, learner, workers, gpus_per_engine=gpus_per_engine, wait=wait)  # type: ignore[arg-type]
    return transfer, log, waited


def test_over_nccl_all_meet_once_and_nobody_is_waited_for_alone() -> None:
    transfer, log, waited = cluster("nccl", gpus_per_engine=2)
    meeting = Rendezvous("10.0.0.1", 4000, num_engines=2, gpus_per_engine=2)
    assert log == [
        ("learner", "open_address", (), {}),
        ("worker 0", "meet", (meeting, 0), {}),
        ("worker 1", "meet", (meeting, 1), {}),
        ("learner", "meet", (meeting,), {}),
    ]
    assert waited == [["learner.open_address"], ["worker 0.meet", "worker 1.meet", "learner.meet"]]
    log.clear()
    waited.clear()
    answer = transfer.push(5, "average")
    assert log == [
        ("learner", "announce", (5,), {"network": "average"}),
        ("worker 0", "update_weights", ("learner.announce",), {}),
        ("worker 1", "update_weights", ("learner.announce",), {}),
        ("learner", "broadcast", (), {"network": "average"}),
    ]
    assert waited == []  # all of it is under way before anybody is waited for
    assert answer() == [{"megabytes": 1.0}, {"megabytes": 2.0}]
    assert waited == [["worker 0.update_weights", "worker 1.update_weights", "learner.broadcast"]]


def test_over_ipc_the_learner_keeps_its_memory_until_every_engine_has_copied() -> None:
    transfer, log, waited = cluster("ipc")
    assert log == []  # nobody to meet
    transfer.push(5, "policy")()
    assert log == [
        ("learner", "share", (5,), {"network": "policy"}),
        ("worker 0", "update_weights", ("learner.share",), {}),
        ("worker 1", "update_weights", ("learner.share",), {}),
        ("learner", "release", ("worker 0.update_weights", "worker 1.update_weights"), {}),
    ]
    assert waited == [["worker 0.update_weights", "worker 1.update_weights", "learner.release"]]
