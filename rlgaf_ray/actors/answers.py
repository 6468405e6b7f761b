"""Waiting for actors: every wait has a limit, and whoever fails or stays silent is named."""

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
Asked = tuple[Any, str, Any]  # an actor, the method that was called, the reference to its answer
LAST_WORDS_SECONDS = 10.0  # for the other ranks, once one has failed: that one may have missed one that died


class ActorFailure(UserError):
    """An actor died or did not answer in time: one sentence that names it."""


class ActorSilent(ActorFailure):
    """It did not answer in time, and may be alive."""


class ActorSpent(ActorFailure):
    """It is alive and of no more use: out of memory, or without the engine that it held."""


class ActorNotStarted(ActorFailure):
    """It raised an exception while it was built; the cause holds the remote traceback."""


class SourceLost(ActorFailure):
    """It may be well, but what it was to work on comes from an actor that is lost."""


class Answers:
    """``names``: of each actor, as its failure is told."""

    def __init__(self, names: dict[Any, str], *, timeout: float) -> None:
        self.names = names
        self.timeout = timeout

    def get(self, actor: Any, method: str, ref: ray.ObjectRef[T], *, timeout: float | None = None) -> T:
        """The answer. Raises the actor's own ``UserError``, ``ActorFailure``, or Ray's error with a bug's traceback."""
        name = self.names[actor]
        try:
            return ray.get(ref, timeout=self.timeout if timeout is None else timeout)
        except GetTimeoutError:
            raise ActorSilent(
                f"{name} did not answer {method} within {self.timeout:g} s (cluster.timeout_seconds)"
            ) from None
        except RayTaskError as error:
            if isinstance(error, RayActorError | OutOfMemoryError):  # of whoever made the arguments, not of this one
                raise SourceLost(f"{self._died(error.cause)} before {name} had what {method} needs") from error
            if isinstance(error.cause, UserError):  # one sentence, without the actor's traceback
                raise error.cause from None
            if reason := _spent(error.cause):
                if method == "update_weights":  # Ray does not tell whether it was whoever made them
                    raise SourceLost(
                        f"{name}, or the learner whose weights it was to take, {reason}: {_one_line(error.cause)}"
                    ) from error
                raise ActorSpent(f"{name} {reason} during {method}: {_one_line(error.cause)}") from error
            raise
        except (RayActorError, OutOfMemoryError) as error:
            if isinstance(error, RayActorError) and error.actor_init_failed:
                if message := _user_error(error):
                    raise UserError(message) from None
                raise ActorNotStarted(f"{name} could not be built: {_last_line(error)}") from error
            raise ActorFailure(f"{name} died during {method}: {_brief(error)}") from error

    def living(self, actors: Sequence[Any]) -> list[Any]:
        """Those that answer, if what they are at ends soon."""
        calls = {actor.__ray_ready__.remote(): actor for actor in actors}
        done, _ = ray.wait(list(calls), num_returns=len(calls), timeout=LAST_WORDS_SECONDS)
        found = []
        for ref in done:
            with suppress(ActorFailure):
                self.get(calls[ref], "__ray_ready__", ref)
                found.append(calls[ref])
        return found

    def wait_for(self, actor: Any, method: str, refs: Sequence[ray.ObjectRef]) -> None:
        """Until what another actor works on is made, or known never to be. Fetches nothing."""
        _, missing = ray.wait(list(refs), num_returns=len(refs), timeout=self.timeout, fetch_local=False)
        if missing:
            raise SourceLost(
                f"{self.names[actor]} did not answer {method} within {self.timeout:g} s (cluster.timeout_seconds)"
            )

    def _died(self, cause: Exception) -> str:
        for actor, name in self.names.items():
            if actor._actor_id.hex() == getattr(cause, "actor_id", None):
                return f"{name} died"
        return "an actor died"

    def of_all(self, calls: Sequence[Asked]) -> list[Any]:
        """The answers in order. The first failure ends the wait: the others may be waiting for the one that failed."""
        pending = {ref: (actor, method) for actor, method, ref in calls}
        deadline = time.monotonic() + self.timeout
        while pending:
            done, _ = ray.wait(list(pending), timeout=max(0.0, deadline - time.monotonic()))
            if not done:
                silent = ", ".join(f"{self.names[actor]} ({method})" for actor, method in pending.values())
                raise ActorFailure(f"no answer within {self.timeout:g} s (cluster.timeout_seconds) from {silent}")
            self.get(*pending.pop(done[0]), done[0])
        return [ray.get(ref) for _, _, ref in calls]

    def of_ranks(self, actors: Sequence[Any], method: str, refs: Sequence[ray.ObjectRef]) -> Any:
        """The first rank's answer, once all have answered. A rank that died is named, not those that missed it."""
        if len(actors) == 1:
            return self.get(actors[0], method, refs[0])
        waiting, deadline = dict(zip(refs, actors, strict=True)), time.monotonic() + self.timeout
        failed: RayTaskError | None = None
        while waiting:
            left = max(0.0, deadline - time.monotonic())
            done, _ = ray.wait(list(waiting), timeout=left if failed is None else min(left, LAST_WORDS_SECONDS))
            if not done and failed is not None:
                break
            for ref in done or list(waiting)[:1]:
                try:
                    self.get(waiting.pop(ref), method, ref, timeout=1.0 if done else 0.0)
                except RayTaskError as error:
                    failed = failed or error
        if failed is not None:
            raise failed
        return ray.get(refs[0])


def _spent(cause: BaseException) -> str:
    """What befell an actor that raised this, where a new one may do better; else empty."""
    if (
        isinstance(cause, MemoryError | torch.OutOfMemoryError)
        or (isinstance(cause, OSError) and cause.errno == errno.ENOMEM)
        or any(words in str(cause) for words in ("DefaultCPUAllocator: can't allocate", "CUDA error: out of memory"))
    ):
        return "ran out of memory"
    if type(cause).__name__ == "EngineDeadError":  # vLLM's, which is imported where there is an engine alone
        return "lost its engine"
    return ""


def _user_error(error: RayActorError) -> str:
    """The message of a ``UserError`` in the constructor, else empty: Ray passes on the traceback's text alone."""
    _, found, message = _last_line(error).partition(f"{UserError.__module__}.{UserError.__qualname__}: ")
    return message if found else ""


def _last_line(error: BaseException) -> str:
    return str(error).strip().rpartition("\n")[2].strip()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _brief(error: RayError) -> str:
    """What Ray says of the end, without what it guesses."""
    text = _one_line(error)
    before, found, detail = text.partition("Worker exit detail: ")
    return (detail if found else before).partition(" Some common causes")[0]
