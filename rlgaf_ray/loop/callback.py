"""What the caller of a run can follow and influence while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

from rlgaf_ray.data.storage import Place
from rlgaf_ray.loop.guard import Verdict
from rlgaf_ray.loop.outcome import Outcome
from rlgaf_ray.training.warmup import WarmupProgress
from rlgaf_ray.types import Metrics


class Callback:
    """Override what you need; by default every method does nothing. An exception in one ends the run."""

    stop_requested = False
    """Set it, from any thread, to end the run after the current iteration, with a checkpoint."""

    def on_iteration(self, iteration: int, metrics: Metrics) -> None:
        """After each iteration, with all of its metrics; iteration 0 is the SFT model's evaluation."""

    def on_evaluation(self, iteration: int, metrics: Metrics) -> None:
        """After ``on_iteration`` where the generator was evaluated, with the evaluation's metrics."""

    def on_verdict(self, iteration: int, verdict: Verdict) -> None:
        """The guard found a symptom, or none after there was one; before the run acts on it."""

    def on_checkpoint(self, iteration: int, folder: Place) -> None:
        """A checkpoint is complete."""

    def on_end(self, outcome: Outcome) -> None:
        """The run has ended and its models are exported. Not called where an exception ended it."""

    # For displays.

    def on_message(self, text: str) -> None:
        """One line about the run's state: a warm-up from the cache, a replaced worker. From any thread."""

    def on_warmup(self, stage: str, progress: WarmupProgress) -> None:
        """A step of a supervised warm-up: ``generator``, ``sft`` or ``discriminator``."""

    def on_discriminator_warmup(self, update: int, total: int, metrics: Metrics) -> None:
        """An update of the discriminator on rollouts before the first iteration."""

    def warming_up(self) -> AbstractContextManager[None]:
        """Entered for the supervised warm-ups."""
        return nullcontext()

    def waiting(self, what: str) -> AbstractContextManager[None]:
        """Entered for a slow step, such as the start of the actors."""
        return nullcontext()

    def training(self, *, start: int, total: int, first: str) -> AbstractContextManager[None]:
        """Entered for the loop from iteration ``start``; ``first``: the step before its first metrics."""
        return nullcontext()


class Callbacks:
    """Calls each of several callbacks, in order."""

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
