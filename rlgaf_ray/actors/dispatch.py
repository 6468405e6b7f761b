"""Balance rollout requests over the workers: each batch is split into parts, and an idle worker takes the next part.

The driver runs one thread per worker. The thread takes the next part from the queue, has the worker load that part's
weights if it holds different ones, has it sample, and repeats. Batches are served in order; within a batch the part
with the most expected tokens goes first, so that the last ones are short. An idle worker loads the newest weights.
A worker skips versions that none of its parts needs, and loads older weights only for the part of an absent worker.

Rollouts are returned in the order of the prompts. They do not depend on the worker: each has its own seed.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from rlgaf_ray.engines.checks import max_response_tokens
from rlgaf_ray.types import Metrics, Prompt, Rollout, SamplingSettings

FULL_ENGINE = 256
"""Minimum rollouts per request: an engine samples 256 rollouts in two requests as fast as in one, but 64 in two a
third slower (docs/log/2026-11-27-schedules.md)."""

MOST_REQUESTS = 4
"""Maximum parts per worker: with two workers, a stalled worker then holds an eighth of the batch."""

CLOSE_SECONDS = 10.0


@dataclass(eq=False)
class Weights:
    """One weight push. ``update`` is the argument of a worker's call. ``loaded`` holds each worker's metrics for this
    push, or for the newer one that it loaded instead; none if the worker is absent."""

    update: Any
    loaded: list[Future[Metrics]]


@dataclass(eq=False)
class Part:
    """Consecutive prompts of one batch; neighbours may share prefixes."""

    prompts: Sequence[Prompt]
    sampling: SamplingSettings
    seeds: Sequence[int]
    weights: Weights | None  # None: the weights the engine started with
    taken_at: float = 0.0
    ended_at: float = 0.0
    rollouts: Future[list[Rollout]] = field(default_factory=Future)

    @property
    def expected_tokens(self) -> int:
        return sum(expected_tokens(self.prompts, self.sampling))


Call = Callable[[Any | None, Part | None], tuple[Metrics, list[Rollout]]]
"""Loads an update on one worker, then samples a part; either may be None."""


class Dispatcher:
    """Queues the parts of rollout batches and the weight pushes, and serves each worker from a thread."""

    def __init__(self, calls: Sequence[Call], *, requests_per_worker: int | None = None) -> None:
        """``calls`` has one entry per worker.

        ``requests_per_worker`` is the number of parts per worker and batch; None chooses it from the batch size
        (``FULL_ENGINE``, ``MOST_REQUESTS``).
        """
        self.calls = calls
        self.requests_per_worker = requests_per_worker
        self.changed = threading.Condition()
        self.parts: deque[Part] = deque()  # not taken yet
        self.newest: Weights | None = None
        self.ahead: list[deque[Weights]] = [deque() for _ in calls]  # per worker: pushes it has not loaded yet
        self.absent: set[int] = set()
        self.error: BaseException | None = None
        self.closed = False
        self.threads = [threading.Thread(target=self._serve, args=(index,), daemon=True) for index in range(len(calls))]
        for thread in self.threads:
            thread.start()

    def start(
        self, prompts: Sequence[Prompt], sampling: SamplingSettings, seeds: Sequence[int]
    ) -> Callable[[], tuple[list[Rollout], float]]:
        """Request rollouts from the newest weights. Call the returned function to wait for (rollouts, seconds)."""
        share = sampling.samples_per_prompt
        bounds = split(expected_tokens(prompts, sampling), self._num_parts(len(seeds)))
        with self.changed:
            parts = [
                Part(prompts[start:end], sampling, seeds[start * share : end * share], self.newest)
                for start, end in pairwise(bounds)
                if end > start
            ]
            self._enter()
            self.parts.extend(sorted(parts, key=lambda part: part.expected_tokens, reverse=True))

        def wait() -> tuple[list[Rollout], float]:
            rollouts = [rollout for part in parts for rollout in part.rollouts.result()]
            first = min((part.taken_at for part in parts), default=0.0)
            return rollouts, max((part.ended_at for part in parts), default=0.0) - first

        return wait

    def push(self, update: Any) -> Callable[[], Metrics]:
        """Use these weights for all later requests.

        The returned function waits until every worker that is not absent holds them or newer ones; it returns the
        slowest worker's metrics.
        """
        weights = Weights(update, [Future() for _ in self.calls])
        with self.changed:
            self._enter()
            self.newest = weights
            for index, ahead in enumerate(self.ahead):
                if index in self.absent:
                    weights.loaded[index].set_result({})
                else:
                    ahead.append(weights)

        def wait() -> Metrics:
            rows = [row for loaded in weights.loaded if (row := loaded.result())]
            return {name: max(row[name] for row in rows) for name in (rows[0] if rows else ())}

        return wait

    def leave(self, index: int, part: Part | None) -> None:
        """Continue without a worker until its call returns: the others sample its part, and no push waits for it."""
        with self.changed:
            if index in self.absent:
                return
            self.absent.add(index)
            while self.ahead[index]:
                self.ahead[index].popleft().loaded[index].set_result({})
            if part:
                self.parts.appendleft(part)
            self.changed.notify_all()

    def drop(self) -> None:
        """Discard the queued parts. Parts in progress finish and their rollouts are discarded."""
        with self.changed:
            self.parts.clear()

    def close(self) -> None:
        """End the threads. Call it after the workers have ended, so that pending calls fail and return."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        for thread in self.threads:
            thread.join(CLOSE_SECONDS)

    def _num_parts(self, num_rollouts: int) -> int:
        num_workers = len(self.calls)
        each = self.requests_per_worker or min(MOST_REQUESTS, max(1, num_rollouts // (num_workers * FULL_ENGINE)))
        return num_workers * each

    def _enter(self) -> None:
        """Wake the worker threads before adding work. Raises the error that ended a worker."""
        if self.error is not None:
            raise self.error
        self.changed.notify_all()

    def _serve(self, index: int) -> None:
        held: Weights | None = None
        while True:
            with self.changed:
                while not (self.closed or self.parts or self.newest is not held):
                    self.changed.wait()
                if self.closed:
                    return
                part = self.parts.popleft() if self.parts else None
                wanted = part.weights if part else self.newest
            update = wanted.update if wanted is not None and wanted is not held else None
            if part:
                part.taken_at = time.perf_counter()
            try:
                metrics, rollouts = self.calls[index](update, part)
            except BaseException as error:  # raised again in the waiting caller
                self._fail(error, self._returned(index, part))
                return
            part = self._returned(index, part)
            if wanted is not None and wanted is not held:
                self._loaded(index, wanted, metrics)
                held = wanted
            if part:
                part.ended_at = time.perf_counter()
                part.rollouts.set_result(rollouts)

    def _returned(self, index: int, part: Part | None) -> Part | None:
        """End a worker's absence; returns its part, unless the others sample it."""
        with self.changed:
            if index not in self.absent:
                return part
            self.absent.remove(index)
            return None

    def _loaded(self, index: int, weights: Weights, metrics: Metrics) -> None:
        with self.changed:
            if self.error is not None:  # all futures already carry the error
                return
            ahead = self.ahead[index]
            while weights in ahead:
                ahead.popleft().loaded[index].set_result(metrics)

    def _fail(self, error: BaseException, part: Part | None) -> None:
        with self.changed:
            if part:
                part.rollouts.set_exception(error)
            if self.error is None:
                self.error, self.closed = error, True
                for other in self.parts:
                    other.rollouts.set_exception(error)
                for index, ahead in enumerate(self.ahead):
                    for weights in ahead:
                        weights.loaded[index].set_exception(error)
                self.changed.notify_all()


def expected_tokens(prompts: Sequence[Prompt], sampling: SamplingSettings) -> list[int]:
    """Estimate each prompt's tokens: its prompt once (its samples share it) and the response budget of every sample."""
    return [
        len(prompt.token_ids) + sampling.samples_per_prompt * max_response_tokens(prompt, sampling)
        for prompt in prompts
    ]


def split(tokens: Sequence[int], num_parts: int) -> list[int]:
    """Split the prompts into parts of about equal tokens; returns ``num_parts`` + 1 ascending boundaries."""
    ends = np.cumsum([0, *tokens])
    return np.interp(np.linspace(0, ends[-1], num_parts + 1), ends, np.arange(len(ends))).round().astype(int).tolist()
