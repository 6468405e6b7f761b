"""Rollout requests to many workers: pulled, not dealt. A free worker takes the next part, a slow one takes fewer.

A thread of the driver serves each worker: it takes the oldest part that nobody has, has the worker load the weights
that the part asks for where it holds others, has it sample, and takes the next. Parts of a request are taken in order
of their expected tokens, longest first, so that what is left at the end is short; requests are taken in order. A worker
without a part loads the newest weights. It never goes back to older ones, and passes over those that no part it took
asked for.

Rollouts come back in the prompts' order. Who samples one does not matter: each has a seed of its own.
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
"""Rollouts that one request should have at least: an engine samples 256 in two requests as fast as in one, 64 in two
a third slower (docs/benchmarks.md)."""

MOST_REQUESTS = 4
"""Parts for each worker of a large batch: a worker that stands still then holds an eighth of two workers' batch."""

CLOSE_SECONDS = 10.0


@dataclass(eq=False)
class Weights:
    """One push. ``update`` is what a worker's call takes; ``loaded`` has each worker's metrics of it, or of the newer
    weights that it took instead."""

    update: Any
    loaded: list[Future[Metrics]]


@dataclass(eq=False)
class Part:
    """A run of neighbouring prompts (they may share prefixes) of one request."""

    prompts: Sequence[Prompt]
    sampling: SamplingSettings
    seeds: Sequence[int]
    weights: Weights | None  # None: those that the engine has started with
    taken_at: float = 0.0
    ended_at: float = 0.0
    rollouts: Future[list[Rollout]] = field(default_factory=Future)

    @property
    def expected_tokens(self) -> int:
        return sum(expected_tokens(self.prompts, self.sampling))


Call = Callable[[Any | None, Part | None], tuple[Metrics, list[Rollout]]]
"""Has one worker load an update, then sample a part; either may be None."""


class Dispatcher:
    def __init__(self, calls: Sequence[Call], *, requests_per_worker: int | None = None) -> None:
        """One call a worker. ``requests_per_worker``: None takes more than one where each is still large."""
        self.calls = calls
        self.requests_per_worker = requests_per_worker
        self.changed = threading.Condition()
        self.parts: deque[Part] = deque()  # that nobody has taken
        self.newest: Weights | None = None
        self.ahead: list[deque[Weights]] = [deque() for _ in calls]  # pushes that each worker does not hold yet
        self.error: BaseException | None = None
        self.closed = False
        self.threads = [threading.Thread(target=self._serve, args=(index,), daemon=True) for index in range(len(calls))]
        for thread in self.threads:
            thread.start()

    def start(
        self, prompts: Sequence[Prompt], sampling: SamplingSettings, seeds: Sequence[int]
    ) -> Callable[[], tuple[list[Rollout], float]]:
        """Ask for rollouts from the newest weights; what comes back waits for them and for the seconds they took."""
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
        """New weights for what is asked for from now on; what comes back waits until each worker has them, or newer
        ones, and gives the metrics of the slowest."""
        weights = Weights(update, [Future() for _ in self.calls])
        with self.changed:
            self._enter()
            self.newest = weights
            for ahead in self.ahead:
                ahead.append(weights)

        def wait() -> Metrics:
            rows = [loaded.result() for loaded in weights.loaded]
            return {name: max(row[name] for row in rows) for name in rows[0]}

        return wait

    def drop(self) -> None:
        """Forget the parts that nobody has taken; those that are being made end in nobody's hands."""
        with self.changed:
            self.parts.clear()

    def close(self) -> None:
        """To be called when the workers have ended: what is still asked of one fails then, and its thread ends."""
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
        """Wake the workers for what is being added. Raises what ended one of them."""
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
            except BaseException as error:  # whoever waits gets it
                self._fail(error, part)
                return
            if wanted is not None and wanted is not held:
                self._loaded(index, wanted, metrics)
                held = wanted
            if part:
                part.ended_at = time.perf_counter()
                part.rollouts.set_result(rollouts)

    def _loaded(self, index: int, weights: Weights, metrics: Metrics) -> None:
        with self.changed:
            if self.error is not None:  # everybody who waits has heard of it
                return
            ahead = self.ahead[index]
            while (passed := ahead.popleft()) is not weights:
                passed.loaded[index].set_result(metrics)
            weights.loaded[index].set_result(metrics)

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
    """Of each prompt: its own once, for its samples share them, and all that its samples may have."""
    return [
        len(prompt.token_ids) + sampling.samples_per_prompt * max_response_tokens(prompt, sampling)
        for prompt in prompts
    ]


def split(tokens: Sequence[int], num_parts: int) -> list[int]:
    """Where to cut a row of prompts into parts of about the same tokens: ``num_parts`` + 1 rising positions."""
    ends = np.cumsum([0, *tokens])
    return np.interp(np.linspace(0, ends[-1], num_parts + 1), ends, np.arange(len(ends))).round().astype(int).tolist()
