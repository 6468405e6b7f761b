"""Schedules of rollouts: between the updates (``sync``), or concurrently with them (``async``).

Iteration i trains on batch i and produces version i of the weights. A batch is sampled from the newest version pushed
before it was requested. ``async`` has max_staleness + 1 slots for batches that are requested but not yet trained on:
batch i + max_staleness + 1 is requested after the push of version i, so a rollout is never more than max_staleness
versions older than the policy that trains on it. Staleness is bounded by construction, and the versions do not depend
on timing: the same seed reproduces the run on any machine.

The cost of a higher max_staleness is older samples, corrected by importance weights
(``generator.importance_weight_mode``). One extra slot keeps all roles busy if batches take similar time; more slots
balance batches of very different length.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from rlgaf_ray.data.prompts import MixedPromptStream
from rlgaf_ray.loop.roles import PendingRollouts, PendingScores, Roles
from rlgaf_ray.types import Metrics, Rollout, ScoredRollout

Start = Callable[[int], PendingRollouts]
"""Draws the prompts of an iteration and requests its rollouts."""

Score = Callable[[int, list[Rollout]], PendingScores]
"""Requests the scores of an iteration's rollouts."""


@dataclass(frozen=True)
class Batch:
    """The scored rollouts of one iteration."""

    scored: list[ScoredRollout]
    held_out_logits: list[float]  # of demonstrations scored with the rollouts: held-out ones, then trained ones
    seconds: float  # spent sampling

    @property
    def rollouts(self) -> list[Rollout]:
        return [item.rollout for item in self.scored]


class Schedule(Protocol):
    """Decides when batches are requested; adds the loop's wait (``time/rollout``, ``time/score``) to ``metrics``."""

    def next(self, iteration: int, metrics: Metrics) -> Batch:
        """Return the batch of this iteration, scored by the discriminator before the iteration's updates."""
        ...

    def pushed(self, iteration: int, metrics: Metrics) -> None:
        """Start the work that may follow once the iteration's updates and weight push are requested."""
        ...

    def drop(self) -> None:
        """Discard the batches requested ahead; their prompts are drawn again from ``prompts_state``."""
        ...

    def prompts_state(self) -> dict[str, int]:
        """State of the prompt stream before the batches that were not trained on yet."""
        ...


class Sync:
    """Requests a batch when it is needed, from the newest policy."""

    def __init__(self, start: Start, score: Score, prompts: MixedPromptStream) -> None:
        self.start = start
        self.score = score
        self.prompts = prompts

    def next(self, iteration: int, metrics: Metrics) -> Batch:
        with timed(metrics, "time/rollout"):
            rollouts, seconds = self.start(iteration)()
        with timed(metrics, "time/score"):
            return Batch(*self.score(iteration, rollouts)(), seconds)

    def pushed(self, iteration: int, metrics: Metrics) -> None:
        pass

    def drop(self) -> None:
        pass

    def prompts_state(self) -> dict[str, int]:
        return self.prompts.state_dict()


@dataclass
class Slot:
    """A requested batch."""

    iteration: int  # that trains on it
    prompts_before: dict[str, int]
    rollouts: PendingRollouts
    scores: PendingScores | None = None
    seconds: float = 0.0


class Async:
    """Requests batches as early as ``max_staleness`` allows, and scores them while the learner trains."""

    def __init__(
        self,
        start: Start,
        score: Score,
        prompts: MixedPromptStream,
        roles: Roles,
        *,
        max_staleness: int,
        iterations: int,
    ) -> None:
        """``iterations``: total number of iterations; no batch is requested beyond them."""
        self.start = start
        self.score = score
        self.prompts = prompts
        self.roles = roles
        self.max_staleness = max_staleness
        self.iterations = iterations
        self.slots: deque[Slot] = deque()

    def next(self, iteration: int, metrics: Metrics) -> Batch:
        self._fill(iteration - 1)
        slot = self.slots[0]
        assert slot.iteration == iteration, f"iteration {iteration} would train on the batch of {slot.iteration}"
        with timed(metrics, "time/rollout"):
            scores = self._start_score(slot)
        with timed(metrics, "time/score"):
            scored = scores()
        self.slots.popleft()
        return Batch(*scored, slot.seconds)

    def pushed(self, iteration: int, metrics: Metrics) -> None:
        self._fill(iteration)
        if self.slots:
            with timed(metrics, "time/rollout"):
                self._start_score(self.slots[0])

    def drop(self) -> None:
        self.slots.clear()
        self.roles.drop_rollouts()

    def prompts_state(self) -> dict[str, int]:
        return self.slots[0].prompts_before if self.slots else self.prompts.state_dict()

    def _fill(self, version: int) -> None:
        """Request all batches that may use ``version``, the newest pushed version of the weights."""
        newest = self.slots[-1].iteration if self.slots else version
        for iteration in range(newest + 1, min(version + 1 + self.max_staleness, self.iterations) + 1):
            self.slots.append(Slot(iteration, self.prompts.state_dict(), self.start(iteration)))

    def _start_score(self, slot: Slot) -> PendingScores:
        """Wait for the rollouts, then request their scores, after the discriminator updates requested so far."""
        if slot.scores is None:
            rollouts, slot.seconds = slot.rollouts()
            slot.scores = self.score(slot.iteration, rollouts)
        return slot.scores


@contextmanager
def timed(metrics: Metrics, name: str) -> Iterator[None]:
    """Add the duration of the block in seconds to a metric."""
    start = time.perf_counter()
    yield
    metrics[name] = metrics.get(name, 0.0) + time.perf_counter() - start
