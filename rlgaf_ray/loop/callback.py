"""Callbacks of a run: progress, verdicts, checkpoints and stop requests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

from rlgaf_ray.data.storage import Place
from rlgaf_ray.loop.guard import Verdict
from rlgaf_ray.loop.outcome import Outcome
from rlgaf_ray.training.warmup import WarmupProgress
from rlgaf_ray.types import Metrics


class Callback:
    """Base class whose methods do nothing: override what you need. An exception in a callback ends the run."""

    stop_requested = False
    """Set to True, from any thread, to stop the run after the current iteration, with a checkpoint."""

    def on_iteration(self, iteration: int, metrics: Metrics) -> None:
        """Called after each iteration with all its metrics; iteration 0 is the evaluation of the SFT model."""

    def on_evaluation(self, iteration: int, metrics: Metrics) -> None:
        """Called after ``on_iteration`` with the metrics of a full evaluation."""

    def on_verdict(self, iteration: int, verdict: Verdict) -> None:
        """Called when the guard fires or recovers, before the run acts on the verdict."""

    def on_checkpoint(self, iteration: int, folder: Place) -> None:
        """Called when a checkpoint is complete."""

    def on_end(self, outcome: Outcome) -> None:
        """Called when the run has ended and its models are exported; not after an exception."""

    # Progress displays.

    def on_message(self, text: str) -> None:
        """Called from any thread with a one-line message, such as a cached warm-up or a replaced worker."""

    def on_warmup(self, stage: str, progress: WarmupProgress) -> None:
        """Called after a step of a supervised warm-up: ``generator``, ``sft`` or ``discriminator``."""

    def on_discriminator_warmup(self, update: int, total: int, metrics: Metrics) -> None:
        """Called after a discriminator update on rollouts before the first iteration."""

    def warming_up(self) -> AbstractContextManager[None]:
        """Context of the supervised warm-ups."""
        return nullcontext()

    def waiting(self, what: str) -> AbstractContextManager[None]:
        """Context of a slow step, such as starting the actors."""
        return nullcontext()

    def training(self, *, start: int, total: int, first: str) -> AbstractContextManager[None]:
        """Context of the training loop from iteration ``start``; ``first``: the step before its first metrics."""
        return nullcontext()


class Callbacks:
    """Calls several callbacks in order."""

    def __init__(self, callbacks: Iterable[Callback] = ()) -> None:
        self.callbacks = tuple(callbacks)

    def __iter__(self) -> Iterator[Callback]:
        return iter(self.callbacks)

    @property
    def stop_requested(self) -> bool:
        return any(callback.stop_requested for callback in self.callbacks)

    def on_iteration(self, iteration: int, metrics: Metrics) -> None:
        for callback in self.callbacks:
            callback.on_iteration(iteration, metrics)

    def on_evaluation(self, iteration: int, metrics: Metrics) -> None:
        for callback in self.callbacks:
            callback.on_evaluation(iteration, metrics)

    def on_verdict(self, iteration: int, verdict: Verdict) -> None:
        for callback in self.callbacks:
            callback.on_verdict(iteration, verdict)

    def on_checkpoint(self, iteration: int, folder: Place) -> None:
        for callback in self.callbacks:
            callback.on_checkpoint(iteration, folder)

    def on_end(self, outcome: Outcome) -> None:
        for callback in self.callbacks:
            callback.on_end(outcome)

    def on_message(self, text: str) -> None:
        for callback in self.callbacks:
            callback.on_message(text)

    def on_warmup(self, stage: str, progress: WarmupProgress) -> None:
        for callback in self.callbacks:
            callback.on_warmup(stage, progress)

    def on_discriminator_warmup(self, update: int, total: int, metrics: Metrics) -> None:
        for callback in self.callbacks:
            callback.on_discriminator_warmup(update, total, metrics)

    def warming_up(self) -> AbstractContextManager[None]:
        return self._all(lambda callback: callback.warming_up())

    def waiting(self, what: str) -> AbstractContextManager[None]:
        return self._all(lambda callback: callback.waiting(what))

    def training(self, *, start: int, total: int, first: str) -> AbstractContextManager[None]:
        return self._all(lambda callback: callback.training(start=start, total=total, first=first))

    @contextmanager
    def _all(self, span: Callable[[Callback], AbstractContextManager[None]]) -> Iterator[None]:
        with ExitStack() as stack:
            for callback in self.callbacks:
                stack.enter_context(span(callback))
            yield
