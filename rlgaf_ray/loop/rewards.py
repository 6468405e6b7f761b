"""Rewards of responses: discriminator and reward functions, combined in the driver."""

from __future__ import annotations

import asyncio
import inspect
import math
import queue
import threading
import traceback
from collections.abc import Awaitable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedTokenizerBase

from rlgaf_ray.config import Config
from rlgaf_ray.config.reward import DISCRIMINATOR, RewardKind, RewardSection
from rlgaf_ray.data.task import Task
from rlgaf_ray.errors import UserError
from rlgaf_ray.evaluation.text import decode
from rlgaf_ray.loop.reward_functions import RewardFunction, Values, reward_functions
from rlgaf_ray.objectives.rewards import COMBINE, discriminator_reward
from rlgaf_ray.types import Metrics, Row, ScoredRollout


class RewardFailed(UserError):
    """A reward function raised, timed out or returned an invalid value."""


@dataclass(frozen=True, slots=True)
class Responses:
    """Inputs of the reward sources."""

    scored: Sequence[ScoredRollout]
    columns: Mapping[str, Sequence[Any]]  # arguments of reward functions: prompts, completions, ...


class RewardSource(Protocol):
    def __call__(self, responses: Responses) -> Values: ...


class DiscriminatorReward:
    """The discriminator's logit, mapped by ``reward.kind``. Non-finite logits pass through to the guard."""

    def __init__(self, kind: RewardKind) -> None:
        self.kind = kind

    def __call__(self, responses: Responses) -> Values:
        logits = torch.tensor([item.score for item in responses.scored])
        return discriminator_reward(logits, kind=self.kind).tolist()


class FunctionReward:
    """A reward function, called in the thread of ``Caller``. Raises a one-line ``RewardFailed`` with its name."""

    def __init__(self, name: str, function: RewardFunction, call: Caller, settings: RewardSection) -> None:
        self.name = name
        self.function = function
        self.call = call
        self.settings = settings
        self.accepted = _parameters(function)
        self.metrics: Metrics = {}  # logged by the last call
        self.extra: dict[str, list[str]] = {}

    def __call__(self, responses: Responses) -> Values:
        self.metrics, self.extra = {}, {}
        given = {**responses.columns, "log_extra": self._log_extra, "log_metric": self._log_metric}
        if self.accepted is not None:
            given = {name: value for name, value in given.items() if name in self.accepted}
        seconds = self.settings.timeout_seconds
        answer = self.call(self.function, given)
        try:
            error = answer.exception(seconds)
        except TimeoutError as late:
            raise self._failed(
                f"did not return within reward.timeout_seconds={seconds:g}: make it faster, or raise the timeout"
            ) from late
        if error is not None:
            raise self._failed(f"raised {_described(error)}") from error
        expected = len(responses.scored)
        for column, values in self.extra.items():
            if len(values) != expected:
                raise self._failed(f"logged {len(values)} values of {column} for {expected} responses")
        return self._checked(answer.result(), expected)

    def _checked(self, result: Values, expected: int) -> Values:
        try:
            values = [None if value is None else float(value) for value in result]
        except (TypeError, ValueError, RuntimeError) as error:
            raise self._failed(f"did not return a list of numbers: {_described(error)}") from error
        if len(values) != expected:
            raise self._failed(f"returned {len(values)} rewards for {expected} responses")
        for row, value in enumerate(values):
            if value is not None and not math.isfinite(value):
                raise self._failed(f"returned {value} for response {row}: return finite numbers, or None for no reward")
            if value is not None and value < 0 and not self.settings.takes_negative:
                raise self._failed(
                    f"returned {value:g} for response {row}, but reward.combine={self.settings.combine} needs "
                    "non-negative rewards"
                )
        return values

    def _log_metric(self, name: str, value: float) -> None:
        self.metrics[f"reward/{self.name}/{name}"] = float(value)

    def _log_extra(self, column: str, values: Sequence[object]) -> None:
        self.extra[f"{self.name}/{column}"] = [str(value) for value in values]

    def _failed(self, what: str) -> RewardFailed:
        return RewardFailed(f"reward function {self.name} {what}")


class Caller:
    """Calls functions in one thread, so that a hanging one can time out; ``async`` functions share an event loop."""

    def __init__(self) -> None:
        self.calls: queue.SimpleQueue[tuple[RewardFunction, Mapping[str, Any], Future[Values]] | None] = (
            queue.SimpleQueue()
        )
        self.thread: threading.Thread | None = None

    def __call__(self, function: RewardFunction, arguments: Mapping[str, Any]) -> Future[Values]:
        if self.thread is None:
            self.thread = threading.Thread(target=self._work, name="rewards", daemon=True)
            self.thread.start()
        answer: Future[Values] = Future()
        self.calls.put((function, arguments, answer))
        return answer

    def close(self) -> None:
        self.calls.put(None)

    def _work(self) -> None:
        with asyncio.Runner() as runner:
            while (call := self.calls.get()) is not None:
                function, arguments, answer = call
                try:
                    result = function(**arguments)
                    answer.set_result(runner.run(_wait(result)) if inspect.isawaitable(result) else result)
                except BaseException as error:  # whatever the user's code raises
                    answer.set_exception(error)


async def _wait(result: Awaitable[Values]) -> Values:
    return await result


@dataclass(frozen=True, slots=True)
class Rewarded:
    """Rollouts with rewards, and the metrics and columns that their sources logged."""

    scored: list[ScoredRollout]
    metrics: Metrics
    columns: Mapping[str, Sequence[float | str | None]]  # one entry per rollout


class Rewards:
    """All reward sources of a run. ``close`` stops the thread of its functions."""

    def __init__(
        self,
        config: Config,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        functions: Mapping[str, RewardFunction] | None = None,
    ) -> None:
        """``functions``: those passed as arguments, by name. Raises ``UserError`` as ``reward_functions`` does."""
        settings = config.reward
        self.config = config
        self.task = task
        self.tokenizer = tokenizer
        self.caller = Caller()
        self.functions = {
            name: FunctionReward(name, function, self.caller, settings)
            for name, function in reward_functions(settings, functions or {}).items()
        }
        self.sources: dict[str, RewardSource] = {DISCRIMINATOR: DiscriminatorReward(settings.kind), **self.functions}
        self.weights = torch.tensor(
            [settings.discriminator_weight, *(function.weight for function in settings.functions)], dtype=torch.float64
        )

    def __call__(self, scored: Sequence[ScoredRollout], iteration: int) -> Rewarded:
        """Reward rollouts. Raises ``RewardFailed`` for a function that raises, times out or returns invalid values."""
        responses = Responses(scored, self._columns(scored, iteration) if self.functions else {})
        found = {name: source(responses) for name, source in self.sources.items()}
        given = torch.tensor([[value is not None for value in values] for values in found.values()])
        values = torch.tensor([[value or 0.0 for value in values] for values in found.values()], dtype=torch.float64)
        combined = self._combined(values, given)
        rewarded = [replace(item, reward=reward) for item, reward in zip(scored, combined, strict=True)]
        if not self.functions:
            return Rewarded(rewarded, {}, {})
        metrics: Metrics = {}
        for name, row, applies in zip(found, values, given, strict=True):
            if applies.any():
                metrics[f"reward/{name}"] = float(row[applies].mean())
            if not applies.all():
                metrics[f"reward/{name}_left_out"] = float((~applies).double().mean())
        columns: dict[str, Sequence[float | str | None]] = {f"reward/{name}": row for name, row in found.items()}
        for function in self.functions.values():
            metrics |= function.metrics
            columns |= function.extra
        return Rewarded(rewarded, metrics, columns)

    def _combined(self, values: torch.Tensor, given: torch.Tensor) -> list[float]:
        """Combine sources: [S, B], [S, B] -> [B]. A response without any reward gets the mean of the others."""
        used = self.weights != 0
        weights, values, given = self.weights[used], values[used], given[used]
        rewards = COMBINE[self.config.reward.combine](values, weights, given)
        rewarded = given.any(0)
        if len(weights) and rewarded.any() and not rewarded.all():
            rewards = torch.where(rewarded, rewards, rewards[rewarded].mean())
        return rewards.tolist()

    def _columns(self, scored: Sequence[ScoredRollout], iteration: int) -> dict[str, Any]:
        from transformers import TrainerState  # takes seconds to import

        rollouts = [item.rollout for item in scored]
        known = self.task.rows  # empty if rows were not kept; prompts without answers have none
        rows: list[Row] = [known[item.prompt_id] if item.prompt_id < len(known) else {} for item in rollouts]
        texts = decode([rollout.prompt_ids for rollout in rollouts], self.tokenizer)
        prompts = [row.get("prompt", text) for row, text in zip(rows, texts, strict=True)]
        completions = [
            text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            for prompt, text in zip(prompts, decode([r.response_ids for r in rollouts], self.tokenizer), strict=True)
        ]
        names = dict.fromkeys(name for row in rows for name in row if name != "prompt")
        return {name: [row.get(name) for row in rows] for name in names} | {
            "prompts": prompts,
            "completions": completions,
            "completion_ids": [rollout.response_ids.tolist() for rollout in rollouts],
            "trainer_state": TrainerState(global_step=iteration - 1, max_steps=self.config.run.iterations),
        }

    def close(self) -> None:
        self.caller.close()


def _parameters(function: RewardFunction) -> set[str] | None:
    """Names of the function's parameters; None if it accepts any."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a built-in function
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {parameter.name for parameter in parameters}


def _described(error: BaseException) -> str:
    """Describe an error of user code in one line: type, message and position."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"
