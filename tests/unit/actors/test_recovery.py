"""The limit on actor failures, and the errors after which an actor that is alive is replaced."""

from __future__ import annotations

import errno
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.exceptions import RayTaskError
from torch.distributed import DistBackendError

from rlgaf_ray.actors import answers, recovery
from rlgaf_ray.actors.answers import ActorFailure, ActorsNotPlaced, ActorUnusable, Answers, UpstreamFailure
from rlgaf_ray.actors.recovery import Recoveries, TooManyFailures
from rlgaf_ray.config.cluster import ClusterSection


def test_failures_count_only_within_the_recovery_window(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 50.0, 101.0, 160.0, 190.0])
    monkeypatch.setattr(recovery, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    reports: list[str] = []
    recoveries = Recoveries(ClusterSection(max_recoveries=2, recovery_window_seconds=100.0), reports.append)
    failure = ActorFailure("rollout worker 1 died")
    for _ in range(4):  # at most two within 100 s
        recoveries.record(failure, "replacing it")
    assert reports == ["rollout worker 1 died: replacing it"] * 4
    with pytest.raises(TooManyFailures, match=r"^rollout worker 1 died; more than 2 actors failed within 100 s"):
        recoveries.record(failure, "replacing it")
    assert len(reports) == 4


def test_waits_longer_than_the_window_do_not_go_on_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 200.0, 290.0, 380.0])
    monkeypatch.setattr(recovery, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    recoveries = Recoveries(ClusterSection(max_recoveries=2, recovery_window_seconds=80.0))
    recoveries.record(ActorFailure("the learner died"), "rolling back")
    recoveries.record(ActorFailure("the learner died"), "rolling back")  # the first one has left the window
    without_room = ActorsNotPlaced("no room")
    recoveries.record(without_room, "asking again")
    with pytest.raises(TooManyFailures, match=r"^no room; gave up after 2 recoveries \(cluster.max_recoveries\)$"):
        recoveries.record(without_room, "asking again")


def test_take_returns_the_counts_once() -> None:
    recoveries = Recoveries(ClusterSection())
    recoveries.worker_replaced(3)
    recoveries.worker_replaced(5)
    recoveries.rolled_back()
    assert recoveries.take() == (2, 8, 1)
    assert recoveries.take() == (0, 0, 0)


class EngineDeadError(Exception):
    """Has the name of vLLM's exception."""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "ran out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "ran out of memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "ran out of memory"),
        (OSError(errno.ENOSPC, "No space left on device"), ""),
        (EngineDeadError("EngineCore encountered an issue"), "lost its engine"),
        (torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"), "lost its GPU"),
        (torch.AcceleratorError("CUDA error: out of memory"), "ran out of memory"),
        (DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:94, remote process exited"), "lost its process group"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`"), "lost its GPU"),
        (RuntimeError("CUDA driver error: device not ready"), "lost its GPU"),
        (RuntimeError("CUDA driver error: out of memory"), "ran out of memory"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "lost its GPU"),
        (RuntimeError("cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `...`. "), "lost its GPU"),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), "lost its GPU"),
        (RuntimeError("Triton Error [CUDA]: out of memory"), "ran out of memory"),
        (RuntimeError("NCCL error: unhandled system error"), "lost its process group"),
        (RuntimeError("NCCL Error 1: unhandled cuda error"), "lost its process group"),
        (RuntimeError("Torch not compiled with CUDA enabled"), ""),
        (ValueError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), ""),
        (RuntimeError("Executor failed."), "lost its engine"),
        (RuntimeError("Worker failed with error 'CUDA error: unspecified launch failure', please"), "lost its engine"),
        (TimeoutError("vLLM's process did not answer within 300 s"), "lost its engine"),
        (RuntimeError("The Executor failed."), ""),
        (NotImplementedError("Executor failed."), ""),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ""),
        (ValueError("prompt too long"), ""),
    ],
)
def test_failures_of_memory_gpu_and_engine_are_recoverable_and_bugs_are_not(error: Exception, reason: str) -> None:
    assert answers._unusable(error) == reason


def test_torch_cpu_out_of_memory_error_is_recognised() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60)
    assert answers._unusable(raised.value) == "ran out of memory"


@pytest.mark.parametrize(
    ("method", "failure", "sentence"),
    [
        ("generate", ActorUnusable, "rollout worker 1 ran out of memory during generate: no room"),
        (
            "update_weights",
            UpstreamFailure,
            "rollout worker 1, or the learner that sends its weights, ran out",
        ),
    ],
)
def test_out_of_memory_during_a_weight_push_may_be_the_learners(
    monkeypatch: pytest.MonkeyPatch, method: str, failure: type[ActorFailure], sentence: str
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise RayTaskError(method, "", MemoryError("no room"), ip="127.0.0.1").as_instanceof_cause()

    monkeypatch.setattr(answers.ray, "get", refuse)
    with pytest.raises(failure, match=sentence):
        Answers({"worker": "rollout worker 1"}, timeout=1.0).get("worker", method, None)  # type: ignore[arg-type]


def remote(error: Exception) -> RayTaskError:
    """The error as Ray raises it in the driver."""
    return RayTaskError("update", "the remote traceback", error, ip="127.0.0.1").as_instanceof_cause()


def raised_by(module: str, file: str, *lines: str) -> Any:
    return pytest.param(module, file, lines, id=file)


@pytest.mark.parametrize(
    ("module", "file", "lines"),
    [
        raised_by(
            "torch",
            "include/ATen/cuda/Exceptions.h",
            '"CUDA error: ", ',
            '"CUDA driver error: ", err_str',
            '"cuDNN error: ", ',
            '"cuDNN Frontend error: ", ',
            '"cusolver error: ", ',
        ),
        raised_by("triton", "backends/nvidia/driver.c", 'prefix = "Triton Error [CUDA]: ";', "PyExc_RuntimeError, err"),
        raised_by(
            "vllm", "distributed/device_communicators/cuda_wrapper.py", 'RuntimeError(f"CUDART error: {error_str}")'
        ),
        raised_by(
            "vllm", "distributed/device_communicators/pynccl_wrapper.py", 'RuntimeError(f"NCCL error: {error_str}")'
        ),
        raised_by(
            "vllm",
            "v1/executor/multiproc_executor.py",
            'RuntimeError("Executor failed.")',
            "f\"Worker failed with error '",
        ),
    ],
)
def test_libraries_still_raise_the_known_messages(module: str, file: str, lines: Sequence[str]) -> None:
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        pytest.skip(f"{module} is not installed")
    source = " ".join((Path(found.origin).parent / file).read_text().split())
    for line in lines:
        assert line in source
        assert any(words.strip() in line for words in answers.RUNTIME_ERRORS) or "PyExc_RuntimeError" in line


@pytest.mark.parametrize(
    ("error", "may_be_a_bug"),
    [
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasSgemm(...)`"), True),
        (RuntimeError("Worker failed with error 'index 7 is out of bounds', please check"), True),
        (MemoryError("no room"), False),
    ],
)
def test_a_failed_gpu_or_engine_may_be_a_bug_and_keeps_the_remote_traceback(
    monkeypatch: pytest.MonkeyPatch, error: Exception, may_be_a_bug: bool
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise remote(error)

    monkeypatch.setattr(answers.ray, "get", refuse)
    with pytest.raises(ActorUnusable) as raised:
        Answers({"learner": "the learner"}, timeout=1.0).get("learner", "update", None)  # type: ignore[arg-type]
    recoveries = Recoveries(ClusterSection(max_recoveries=0))
    with pytest.raises(TooManyFailures) as ended:
        recoveries.record(raised.value, "rolling back")
    for failure in (raised.value, ended.value):
        found = answers.possible_bug(failure)
        assert (found is not None) == may_be_a_bug
        assert found is None or "the remote traceback" in str(found)
    assert answers.possible_bug(ActorFailure("the learner died during update")) is None


BROKEN = DistBackendError("NCCL communicator was aborted on rank 0")
GPU = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


@pytest.mark.parametrize(
    ("errors", "named"),
    [
        ([BROKEN, GPU], "rank 1 lost its GPU during update: CUDA error: an illegal memory access"),
        ([GPU, BROKEN], "rank 0 lost its GPU during update: CUDA error: an illegal memory access"),
        ([BROKEN, ValueError("a bug")], "a bug"),
        ([RuntimeError("NCCL error: remote process exited"), GPU], "rank 1 lost its GPU during update: CUDA error"),
        ([BROKEN, BROKEN], "rank 0 lost its process group during update: NCCL communicator"),
        ([BROKEN, MemoryError("no room")], "rank 1 ran out of memory during update: no room"),
    ],
)
def test_the_rank_that_failed_first_is_named_and_not_those_that_waited_for_it(
    monkeypatch: pytest.MonkeyPatch, errors: list[Exception], named: str
) -> None:
    def get(rank: int, timeout: float) -> None:
        raise remote(errors[rank])

    monkeypatch.setattr(answers.ray, "get", get)
    monkeypatch.setattr(answers.ray, "wait", lambda refs, timeout: (refs[:1], refs[1:]))
    with pytest.raises((ActorUnusable, RayTaskError)) as raised:
        Answers({"a": "rank 0", "b": "rank 1"}, timeout=1.0).get_ranks(["a", "b"], "update", [0, 1])  # type: ignore[list-item]
    assert named in repr(raised.value)
