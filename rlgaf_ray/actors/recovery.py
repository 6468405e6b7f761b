"""Recovery from actor failures: the limit after which a run aborts, and killing an actor that hangs."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rlgaf_ray.actors.answers import ActorsNotPlaced
from rlgaf_ray.config.cluster import ClusterSection
from rlgaf_ray.errors import UserError

KILL_SECONDS = 30.0


class TooManyFailures(UserError):
    """More actors failed within the recovery window than ``cluster.max_recoveries`` allows."""


class Recoveries:
    """Counts the recoveries of a run; thread-safe, for the threads that serve the rollout workers."""

    def __init__(self, settings: ClusterSection, report: Callable[[str], None] = lambda text: None) -> None:
        """``report`` receives one sentence per failure."""
        self.settings = settings
        self.report = report
        self.lock = threading.Lock()
        self.times: deque[float] = deque()
        self.workers_replaced = 0
        self.prompts_repeated = 0
        self.rollbacks = 0

    def record(self, failure: Exception, remedy: str) -> None:
        """Count and report a failure before its recovery. Raises ``TooManyFailures`` if the limit is exceeded.

        No failure leaves the window while the cluster has no room for the actors: the waits for it may be longer than
        the window, and the run would wait for ever.
        """
        limit, window = self.settings.max_recoveries, self.settings.recovery_window_seconds
        without_room = isinstance(failure, ActorsNotPlaced)
        with self.lock:
            now = time.monotonic()
            self.times.append(now)
            while now - self.times[0] > window and not without_room:
                self.times.popleft()
            if len(self.times) > limit:
                actors_failed = f"more than {limit} actors failed within {window:g} s"
                reason = f"gave up after {limit} recoveries" if without_room else actors_failed
                raise TooManyFailures(f"{failure}; {reason} (cluster.max_recoveries)") from failure
        self.report(f"{failure}: {remedy}")

    def worker_replaced(self, num_prompts: int) -> None:
        with self.lock:
            self.workers_replaced += 1
            self.prompts_repeated += num_prompts

    def rolled_back(self) -> None:
        with self.lock:
            self.rollbacks += 1

    def take(self) -> tuple[int, int, int]:
        """Return and reset the counts, as ``loop.roles.Roles.recovered``."""
        with self.lock:
            counts = self.workers_replaced, self.prompts_repeated, self.rollbacks
            self.workers_replaced = self.prompts_repeated = self.rollbacks = 0
        return counts


@dataclass(frozen=True, slots=True)
class Process:
    """The node and process id of an actor."""

    node_id: str
    pid: int


def own_process() -> Process:
    return Process(ray.get_runtime_context().get_node_id(), os.getpid())


def kill(actor: Any, process: Process) -> None:
    """Kill an actor that may hang. SIGKILL comes first: a stopped process does not react to ``ray.kill``."""
    on_its_node = NodeAffinitySchedulingStrategy(process.node_id, soft=False)
    with suppress(RayError):  # the node is gone, and the actor with it
        ray.get(_signal.options(scheduling_strategy=on_its_node).remote(process.pid), timeout=KILL_SECONDS)
    ray.kill(actor)


@ray.remote(num_cpus=0, max_retries=0)
def _signal(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
