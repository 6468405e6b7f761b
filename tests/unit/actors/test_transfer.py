"""Which calls a weight push makes, and in which order. The actors are mocks: no weights are sent."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from rlgaf_ray.actors.groups import DiscriminatorWorker, GpuRole, LearnerWorker
from rlgaf_ray.actors.pool import RolloutPool
from rlgaf_ray.actors.push import Load, WeightPush
from rlgaf_ray.actors.roles import RayRoles
from rlgaf_ray.actors.transfer import GpuTransfer
from rlgaf_ray.config import load_config
from rlgaf_ray.config.rollout import RolloutSection
from rlgaf_ray.types import Rollout, SamplingSettings
from rlgaf_ray.weights.nccl import Rendezvous


class MockActor:
    """Mimics a Ray actor handle: ``actor.method.remote(...)`` is logged and returns a reference."""

    def __init__(self, name: str, log: list[tuple[str, str, tuple, dict]], answers: dict[str, Any]) -> None:
        self.name, self.log, self.answers = name, log, answers

    def __getattr__(self, method: str) -> Any:
        class Remote:
            @staticmethod
            def remote(*args: Any, **options: Any) -> str:
                self.log.append((self.name, method, args, options))
                return f"{self.name}.{method}"

        return Remote


Log = list[tuple[str, str, tuple, dict]]


def cluster(backend: str, *, gpus_per_engine: int = 1, num_learners: int = 1):
    log: Log = []
    answers = {"learner 0.open_address": ("10.0.0.1", 4000)}
    learners = [MockActor(f"learner {rank}", log, answers) for rank in range(num_learners)]
    workers = [MockActor(f"worker {index}", log, answers) for index in range(2)]
    waited: list[list[str]] = []

    def wait(calls) -> list[Any]:
        waited.append([f"{actor.name}.{method}" for actor, method, _ in calls])
        return [answers.get(ref) for _, _, ref in calls]

    transfer = GpuTransfer(backend, learners, workers, gpus_per_engine=gpus_per_engine, wait=wait)  # type: ignore[arg-type]
    return transfer, log, waited


def load(worker: MockActor, update: str) -> str:
    return worker.update_weights.remote(update)


def test_nccl_joins_once_and_broadcasts_from_every_rank() -> None:
    transfer, log, waited = cluster("nccl", gpus_per_engine=2, num_learners=2)
    meeting = Rendezvous("10.0.0.1", 4000, num_engines=2, gpus_per_engine=2)
    assert log == [
        ("learner 0", "open_address", (), {}),
        ("worker 0", "join_transfer", (meeting, 0), {}),
        ("worker 1", "join_transfer", (meeting, 1), {}),
        ("learner 0", "join_transfer", (meeting,), {}),
        ("learner 1", "join_transfer", (meeting,), {}),
    ]
    assert waited == [
        ["learner 0.open_address"],
        ["worker 0.join_transfer", "worker 1.join_transfer", "learner 0.join_transfer", "learner 1.join_transfer"],
    ]
    log.clear()
    waited.clear()
    received, sent = transfer.push(5, "average", load)
    assert log == [
        ("learner 0", "announce", (5,), {"network": "average"}),
        ("worker 0", "update_weights", ("learner 0.announce",), {}),
        ("worker 1", "update_weights", ("learner 0.announce",), {}),
        ("learner 0", "broadcast", (), {"network": "average"}),
        ("learner 1", "broadcast", (), {"network": "average"}),
    ]
    assert waited == []  # push() does not block
    assert [(worker.name, ref) for worker, ref in received.items()] == [
        ("worker 0", "worker 0.update_weights"),
        ("worker 1", "worker 1.update_weights"),
    ]
    assert [ref for _, _, ref in sent] == ["learner 0.broadcast", "learner 1.broadcast"]


def test_ipc_releases_memory_after_all_engines_have_copied() -> None:
    transfer, log, waited = cluster("ipc", num_learners=2)
    assert log == waited == []  # ipc needs no process group
    _, sent = transfer.push(5, "policy", load)
    copied = ("worker 0.update_weights", "worker 1.update_weights")
    assert log == [
        ("learner 0", "share", (), {"policy_version": 5, "network": "policy"}),
        ("learner 1", "share", (), {"policy_version": 5, "network": "policy"}),
        ("worker 0", "update_weights", ("learner 0.share",), {}),
        ("worker 1", "update_weights", ("learner 0.share",), {}),
        ("learner 0", "release", copied, {}),
        ("learner 1", "release", copied, {}),
    ]
    assert [ref for _, _, ref in sent] == ["learner 1.share", "learner 0.release", "learner 1.release"]


class MockDispatcher:
    """Stores the load that a worker runs before its next part."""

    def push(self, load: Load) -> Any:
        self.load = load
        return lambda: {"loaded": "asynchronously"}


class MockAnswers:
    """Each load takes one second on worker 0 and two on worker 1."""

    def __init__(self, num_parts: int) -> None:
        self.num_parts = num_parts
        self.waited: list[str] = []

    def get(self, actor: MockActor, method: str, ref: str) -> Any:
        return self.num_parts if method == "num_parts" else {"load_seconds": 1.0 + int(actor.name[-1])}

    def get_all(self, calls: Any) -> list[Any]:
        self.waited += [ref for _, _, ref in calls]
        return []

    def wait_for(self, actor, method, refs) -> None:
        self.awaited = (method, refs)


def pushing(num_parts: int, *overrides: str):
    log: Log = []
    learner = MockActor("learner", log, {})
    workers = [MockActor(f"worker {index}", log, {}) for index in range(2)]
    answers = MockAnswers(num_parts)
    config = load_config(None, list(overrides))
    push = WeightPush("object_store", [learner], workers, config, answers)  # type: ignore[arg-type]
    log.clear()
    return push, workers, answers, log, MockDispatcher()


@pytest.mark.parametrize(("num_parts", "overrides"), [(1, []), (3, ["schedule.mode=async"])])
def test_workers_load_weights_before_the_next_request(num_parts: int, overrides: list[str]) -> None:
    push, workers, answers, log, dispatcher = pushing(num_parts, *overrides)
    assert push.push(4, "policy", dispatcher)() == {"loaded": "asynchronously"}
    assert [name for name, *_ in log] == ["learner"] * num_parts
    log.clear()
    dispatcher.load(workers[1])
    assert log == [("worker 1", "update_weights", ("learner.weights_after",), {})] * num_parts
    assert answers.awaited == ("weights_after", ["learner.weights_after"] * num_parts)  # not a worker's timeout


def test_at_most_two_parts_are_in_the_object_store() -> None:
    push, workers, answers, log, dispatcher = pushing(3)
    slowest = push.push(4, "policy", dispatcher)
    loads: list[Any] = [(f"worker {index}", "update_weights", ("learner.weights_after",), {}) for index in range(2)]
    both = ("worker 0.update_weights", "worker 1.update_weights")
    assert log == [
        ("learner", "weights_after", (4, 0, "policy"), {}),
        *loads,
        ("learner", "weights_after", (4, 1, "policy"), {}),
        *loads,
        ("learner", "weights_after", (4, 2, "policy", *both), {}),  # after part 0 is loaded and freed
        *loads,
    ]
    assert slowest() == {"load_seconds": 6.0}
    assert len(answers.waited) == 6
    log.clear()
    assert dispatcher.load(workers[1]) == ["worker 1.update_weights"] * 3
    assert log == []  # the worker was called already


def test_in_flight_updates_load_in_order() -> None:
    in_flight = ["schedule.mode=async", "weights.in_flight=true", "generator.average_decay=0"]
    push, _, _, log, dispatcher = pushing(1, "rollout.engine=vllm_async", *in_flight)
    for version in (4, 5):
        push.push(version, "policy", dispatcher)
    loads = [arguments for name, _, arguments, _ in log if name == "worker 0"]
    assert loads == [("learner.weights_after",), ("learner.weights_after", "worker 0.update_weights")]


def test_engines_sleep_after_a_batch_and_reload_discarded_weights() -> None:
    """With sleep level 2, which discards the weights."""
    roles = RayRoles.__new__(RayRoles)
    events: list[str] = []
    roles.pool = pool = RolloutPool.__new__(RolloutPool)
    pool.workers = [MockActor("worker 0", [], {}), MockActor("worker 1", [], {})]
    pool.unplaced = {1}  # it would not answer
    started: Log = []
    others = [MockActor(name, started, {}) for name in ("learner", "discriminator")]
    pool.answers = SimpleNamespace(  # type: ignore[assignment]
        names=dict.fromkeys([*others, *pool.workers]), get_all=lambda calls: events.extend(ref for _, _, ref in calls)
    )
    emptied = ["learner.empty_cache", "discriminator.empty_cache"]

    def start(*request: object) -> Callable[[], tuple[list[Rollout], float]]:
        events.append("start")

        def wait() -> tuple[list[Rollout], float]:
            events.append("rollouts")
            return [], 0.0

        return wait

    pool.dispatcher = SimpleNamespace(start=start)  # type: ignore[assignment]

    def push(version: int, network: str, dispatcher: object):
        assert started[-1][1] == "empty_cache"
        events.append(f"push {network} {version}")
        return lambda: events.append("loaded")

    pool.weights = SimpleNamespace(push=push)  # type: ignore[assignment]
    pool.settings = RolloutSection(engine="vllm", sleep_level=2)
    pool.weights_discarded, roles.pushed = False, None
    roles.push_weights(3, network="average")()
    # not awaited: the learner runs it before its part of the push
    assert [(name, method) for name, method, *_ in started] == [(*ref.split("."),) for ref in emptied]
    events.clear()
    sampling = SamplingSettings(max_new_tokens=1)
    pending = roles.start_generate([], sampling, [])
    assert events == [*emptied, "start"]
    pending()
    assert events == [*emptied, "start", "rollouts", "worker 0.sleep"]
    events.clear()
    roles.generate([], sampling, [])
    assert events == ["push average 3", "loaded", *emptied, "start", "rollouts", "worker 0.sleep"]
    roles.pushed = None  # as after an update of the learner
    with pytest.raises(AssertionError, match="the engines discarded their weights"):
        roles.generate([], sampling, [])


def test_engines_that_do_not_sleep_leave_the_other_actors_their_cached_memory() -> None:
    pool = RolloutPool.__new__(RolloutPool)
    pool.workers = [MockActor("worker", [], {})]
    pool.answers = SimpleNamespace(names=dict.fromkeys([MockActor("learner", [], {})]))  # type: ignore[assignment]
    pool.settings = RolloutSection()
    assert pool._empty_caches() == []


@pytest.mark.parametrize("role", [LearnerWorker, DiscriminatorWorker])
def test_an_emptied_cache_is_torchs(monkeypatch: pytest.MonkeyPatch, role: type[GpuRole]) -> None:
    calls: list[str] = []
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: calls.append("empty_cache"))
    role.__new__(role).empty_cache()
    assert calls == ["empty_cache"]


@pytest.mark.parametrize(
    ("overrides", "copies"),
    [
        ([], False),
        (["learner.num_workers=2"], False),
        (["learner.num_workers=2", "learner.strategy=fsdp"], True),
        (["discriminator.num_workers=2", "learner.strategy=fsdp"], False),
        (["model.lora.rank=4", "generator.average_decay=0"], True),
    ],
)
def test_the_transfer_is_chosen_for_the_tensors_that_a_push_sends(
    monkeypatch: pytest.MonkeyPatch, overrides: list[str], copies: bool
) -> None:
    config = load_config(None, ["cluster.gpus_per_actor=0.3", *overrides])
    asked: dict[str, Any] = {}
    monkeypatch.setattr("rlgaf_ray.actors.push.choose_transfer", lambda requested, **options: asked.update(options))
    fake = SimpleNamespace(learners=["learner"], pool=SimpleNamespace(workers=["worker"]))
    RayRoles._choose_transfer(fake, config, SimpleNamespace(device="cpu"))  # type: ignore[arg-type]
    assert asked["copies"] == copies
