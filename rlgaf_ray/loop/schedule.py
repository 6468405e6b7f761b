"""When rollouts are made: between the updates (``sync``), or beside them (``async``).

Iteration i learns from batch i and makes version i of the weights. A batch has the newest version that was pushed when
it was asked for. ``async`` has max_staleness + 1 slots for batches that were asked for and not yet learned from: asking
for batch i + max_staleness + 1 follows the push of version i, so that no rollout is ever more than max_staleness
versions older than the policy that it teaches. That is a bound by construction, and the versions do not depend on how
fast who works: a seed gives the same run again, whatever the machine.

The price of max_staleness: the learner's weights are corrected for (``generator.importance_weight_mode``), but learn
from older samples. One slot beside the batch in work keeps everyone busy when all batches take about as long; more
even out batches of very different length.
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
"""Draws an iteration's prompts and asks the roles for its rollouts."""

Score = Callable[[int, list[Rollout]], PendingScores]
"""Asks the roles for the scores of an iteration's rollouts."""


@dataclass(frozen=True)
class Batch:
    scored: list[ScoredRollout]
    held_out_logits: list[float]  # of the demonstrations that were scored with them: held out, then trained on
    seconds: float  # that sampling took

    @property
    def rollouts(self) -> list[Rollout]:
        return [item.rollout for item in self.scored]


class Schedule(Protocol):
    """``metrics`` gets the time that the loop waited: ``time/rollout`` and ``time/score``."""

    def next(self, iteration: int, metrics: Metrics) -> Batch:
        """The batch that this iteration learns from, scored by the discriminator as it is before its updates."""
        ...

    def pushed(self, iteration: int, metrics: Metrics) -> None:
        """The iteration's updates and the push of its weights were asked for: what may follow them may begin."""
        ...

    def drop(self) -> None:
        """Forget the batches that were made ahead. Their prompts are drawn anew, from the state below."""
        ...

    def prompts_state(self) -> dict[str, int]:
        """Of the prompt stream, as it was before the batches that nothing was learned from yet."""
        ...


class Sync:
    """A batch is asked for when it is needed, from the newest policy."""

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
    """A batch that was asked for."""

    iteration: int  # that will learn from it
    prompts_before: dict[str, int]
    rollouts: PendingRollouts
    scores: PendingScores | None = None
    seconds: float = 0.0


class Async:
    """Batches are asked for as early as ``max_staleness`` lets them, and scored while the learner works."""

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
        """``iterations``: how many there are in all; no batch is made for more."""
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
        assert slot.iteration == iteration, f"iteration {iteration} would learn from the batch of {slot.iteration}"
        with timed(metrics, "time/rollout"):
            scores = self._start_score(slot)
        with timed(metrics, "time/score"):
            found = scores()
        self.slots.popleft()
        return Batch(*found, slot.seconds)

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
        """Ask for all batches that may be made with this version of the weights, the newest that was pushed."""
        newest = self.slots[-1].iteration if self.slots else version
        for iteration in range(newest + 1, min(version + 1 + self.max_staleness, self.iterations) + 1):
            self.slots.append(Slot(iteration, self.prompts.state_dict(), self.start(iteration)))

    def _start_score(self, slot: Slot) -> PendingScores:
        """Wait for the rollouts, and hand them to the discriminator behind the updates it was asked for."""
        if slot.scores is None:
            rollouts, slot.seconds = slot.rollouts()
            slot.scores = self.score(slot.iteration, rollouts)
        return slot.scores


@contextmanager
def timed(metrics: Metrics, name: str) -> Iterator[None]:
    """Adds the seconds that the block took."""
    start = time.perf_counter()
    yield
    metrics[name] = metrics.get(name, 0.0) + time.perf_counter() - start
