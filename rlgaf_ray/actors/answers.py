"""Wait for actor calls with a timeout; a failure names the actor that died or did not answer."""

from __future__ import annotations

import errno
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TypeVar

import ray
import torch
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError, RayError, RayTaskError

from rlgaf_ray.errors import UserError

T = TypeVar("T")
PendingCall = tuple[Any, str, Any]  # actor, method name, object reference of the result
GRACE_SECONDS = 10.0  # once one rank failed: time for the others to show whether a dead rank caused it


class ActorFailure(UserError):
    """An actor died or did not answer in time; the message names it."""


class ActorTimeout(ActorFailure):
    """The actor did not answer in time; it may still be alive."""


class ActorUnusable(ActorFailure):
    """The actor is alive but cannot continue: it ran out of memory, or its GPU or engine failed."""


class ActorNotStarted(ActorFailure):
    """The actor's constructor raised an exception; the cause holds the remote traceback."""


class ActorsNotPlaced(ActorFailure):
    """The cluster did not grant the actors' resources in time; none was started."""


class UpstreamFailure(ActorFailure):
    """The actor that produces this actor's arguments failed; replacing this actor does not help."""


class Answers:
    """Fetches results of actor calls with a timeout and turns Ray's errors into an ``ActorFailure``."""

    def __init__(self, names: dict[Any, str], *, timeout: float) -> None:
        """``names`` maps each actor to its name in error messages; ``timeout`` is in seconds."""
        self.names = names
        self.timeout = timeout

    def get(self, actor: Any, method: str, ref: ray.ObjectRef[T], *, timeout: float | None = None) -> T:
        """Return the result of one call.

        Raises the actor's own ``UserError``, an ``ActorFailure``, or for a bug Ray's error with the remote traceback.
        """
        name = self.names[actor]
        try:
            return ray.get(ref, timeout=self.timeout if timeout is None else timeout)
        except GetTimeoutError:
            raise ActorTimeout(
                f"{name} did not answer {method} within {self.timeout:g} s (cluster.timeout_seconds)"
            ) from None
        except RayTaskError as error:
            if isinstance(error, RayActorError | OutOfMemoryError):  # from the actor that produces the arguments
                raise UpstreamFailure(
                    f"{self._died(error.cause)} before {name} received its arguments for {method}"
                ) from error
            if isinstance(error.cause, UserError):  # one sentence, without the actor's traceback
                raise error.cause from None
            if reason := _unusable(error.cause):
                if method == "update_weights":  # Ray does not say whether the learner or the worker raised it
                    raise UpstreamFailure(
                        f"{name}, or the learner that sends its weights, {reason}: {_one_line(error.cause)}"
                    ) from error
                raise ActorUnusable(f"{name} {reason} during {method}: {_one_line(error.cause)}") from error
            raise
        except (RayActorError, OutOfMemoryError) as error:
            if isinstance(error, RayActorError) and error.actor_init_failed:
                if message := _user_error(error):
                    raise UserError(message) from None
                raise ActorNotStarted(f"{name} could not be built: {_last_line(error)}") from error
            raise ActorFailure(f"{name} died during {method}: {_brief(error)}") from error

    def responsive(self, actors: Sequence[Any]) -> list[Any]:
        """Return the actors that answer within ``GRACE_SECONDS``."""
        calls = {actor.__ray_ready__.remote(): actor for actor in actors}
        done, _ = ray.wait(list(calls), num_returns=len(calls), timeout=GRACE_SECONDS)
        found = []
        for ref in done:
            with suppress(ActorFailure):
                self.get(calls[ref], "__ray_ready__", ref)
                found.append(calls[ref])
        return found

    def wait_for(self, actor: Any, method: str, refs: Sequence[ray.ObjectRef]) -> None:
        """Wait until ``actor`` has finished these calls or failed, without fetching the results.

        Raises ``UpstreamFailure`` on a timeout.
        """
        _, missing = ray.wait(list(refs), num_returns=len(refs), timeout=self.timeout, fetch_local=False)
        if missing:
            raise UpstreamFailure(
                f"{self.names[actor]} did not answer {method} within {self.timeout:g} s (cluster.timeout_seconds)"
            )

    def _died(self, cause: Exception) -> str:
        for actor, name in self.names.items():
            if actor._actor_id.hex() == getattr(cause, "actor_id", None):
                return f"{name} died"
        return "an actor died"

    def get_all(self, calls: Sequence[PendingCall]) -> list[Any]:
        """Return the results in order. The first failure ends the wait: other actors may depend on the failed one."""
        pending = {ref: (actor, method) for actor, method, ref in calls}
        deadline = time.monotonic() + self.timeout
        while pending:
            done, _ = ray.wait(list(pending), timeout=max(0.0, deadline - time.monotonic()))
            if not done:
                late = ", ".join(f"{self.names[actor]} ({method})" for actor, method in pending.values())
                raise ActorFailure(f"no answer within {self.timeout:g} s (cluster.timeout_seconds) from {late}")
            self.get(*pending.pop(done[0]), done[0])
        return [ray.get(ref) for _, _, ref in calls]

    def get_ranks(self, actors: Sequence[Any], method: str, refs: Sequence[ray.ObjectRef]) -> Any:
        """Return rank 0's result once all ranks have answered.

        If a rank died or failed by itself, the error names it and not the ranks whose collectives failed because of it.
        """
        if len(actors) == 1:
            return self.get(actors[0], method, refs[0])
        waiting, deadline = dict(zip(refs, actors, strict=True)), time.monotonic() + self.timeout
        failed: list[RayTaskError | ActorUnusable] = []
        while waiting:
            remaining = max(0.0, deadline - time.monotonic())
            done, _ = ray.wait(list(waiting), timeout=min(remaining, GRACE_SECONDS) if failed else remaining)
            if not done and failed:
                break
            for ref in done or list(waiting)[:1]:
                try:
                    self.get(waiting.pop(ref), method, ref, timeout=1.0 if done else 0.0)
                except RayTaskError as error:
                    failed.append(error)
                except ActorUnusable as failure:
                    if possible_bug(failure) is None:
                        raise
                    failed.append(failure)
        if failed:
            raise min(failed, key=_may_be_a_consequence)
        return ray.get(refs[0])


OUT_OF_MEMORY = "ran out of memory"
LOST_GPU = "lost its GPU"
LOST_GROUP = "lost its process group"
LOST_ENGINE = "lost its engine"
ALLOCATION_FAILURES = (
    "DefaultCPUAllocator: can't allocate",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "Triton Error [CUDA]: out of memory",
)
RUNTIME_ERRORS = {
    "CUDA error: ": LOST_GPU,  # cuBLAS, cuSPARSE: torch's ATen/cuda/Exceptions.h, as the next four
    "CUDA driver error: ": LOST_GPU,
    "cuDNN error: ": LOST_GPU,
    "cuDNN Frontend error: ": LOST_GPU,
    "cusolver error: ": LOST_GPU,
    "Triton Error [CUDA]: ": LOST_GPU,  # triton/backends/nvidia/driver.c
    "CUDART error: ": LOST_GPU,  # vllm/distributed/device_communicators/cuda_wrapper.py
    "NCCL error: ": LOST_GROUP,  # vllm/distributed/device_communicators/pynccl_wrapper.py
    "NCCL Error ": LOST_GROUP,  # torch/csrc/cuda/nccl.cpp
    "Executor failed.": LOST_ENGINE,  # vllm/v1/executor/multiproc_executor.py, as the next one
    "Worker failed with error '": LOST_ENGINE,
}
"""How the message of a plain ``RuntimeError`` begins that reports a failed GPU or engine, and where it is raised."""


def possible_bug(failure: BaseException | None) -> RayTaskError | None:
    """Return the remote error behind an actor's failed GPU or engine, which may be a bug; None for other failures."""
    while isinstance(failure, UserError):
        failure = failure.__cause__
    if isinstance(failure, RayTaskError) and _unusable(failure.cause) not in ("", OUT_OF_MEMORY):
        return failure
    return None


def _may_be_a_consequence(failure: RayTaskError | ActorUnusable) -> int:
    """Order the failures of ranks: a bug first, then a failed GPU, then a collective that another rank broke."""
    error = possible_bug(failure)
    return 0 if error is None else 1 + (_unusable(error.cause) == LOST_GROUP)


def _unusable(cause: BaseException) -> str:
    """Say why the actor that raised this cannot continue and a replacement might; empty for other errors."""
    if (
        isinstance(cause, MemoryError | torch.OutOfMemoryError)
        or (isinstance(cause, OSError) and cause.errno == errno.ENOMEM)
        or any(words in str(cause) for words in ALLOCATION_FAILURES)
    ):
        return OUT_OF_MEMORY
    if isinstance(cause, torch.AcceleratorError):  # no later call to the GPU succeeds in that process
        return LOST_GPU
    if isinstance(cause, torch.distributed.DistBackendError):
        return LOST_GROUP
    # compared by name: only rollout workers import vLLM
    if isinstance(cause, TimeoutError) or type(cause).__name__ == "EngineDeadError":
        return LOST_ENGINE
    if type(cause) is RuntimeError:
        return next((reason for words, reason in RUNTIME_ERRORS.items() if str(cause).startswith(words)), "")
    return ""


def _user_error(error: RayActorError) -> str:
    """Return the message of a ``UserError`` raised in the constructor, else "". Ray passes on only the traceback."""
    _, found, message = _last_line(error).partition(f"{UserError.__module__}.{UserError.__qualname__}: ")
    return message if found else ""


def _last_line(error: BaseException) -> str:
    return str(error).strip().rpartition("\n")[2].strip()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _brief(error: RayError) -> str:
    """Shorten Ray's error to the exit detail, without its list of possible causes."""
    text = _one_line(error)
    before, found, detail = text.partition("Worker exit detail: ")
    return (detail if found else before).partition(" Some common causes")[0]
