"""Reward functions: their signature, which is TRL's, and where they come from, the config's paths or arguments."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from rlgaf_ray.config import Config, with_values
from rlgaf_ray.config.reward import DISCRIMINATOR, RewardSection
from rlgaf_ray.errors import UserError
from rlgaf_ray.plugins import load_object

Values = Sequence[float | None]
"""One reward a response; None: it is not for this response."""


class RewardFunction(Protocol):
    """A reward function with TRL's signature: ``function(prompts, completions, completion_ids, **columns)``.

    It is called once a batch, with lists of one entry a response: ``prompts`` and ``completions`` as text, or as
    messages (``{"role": ..., "content": ...}``) where the data's prompts are messages; ``completion_ids`` as lists of
    ints; each other column of the data under its own name; and TRL's ``trainer_state``, ``log_extra`` and
    ``log_metric``. Parameters that it does not have are left out. It returns a finite number for each response, or
    None where the reward is not for that response. It may be ``async``.
    """

    def __call__(self, *arguments: Any, **columns: Any) -> Values | Awaitable[Values]:
        """One reward for each response of the batch."""
        ...


def reward_functions(
    settings: RewardSection, passed: Mapping[str, RewardFunction] | None = None
) -> dict[str, RewardFunction]:
    """The functions of ``reward.functions`` by name: those that were passed as arguments, else loaded by their path.

    Raises ``UserError`` for one that cannot be loaded, or that was passed as an argument before and is missing now.
    """
    found: dict[str, RewardFunction] = {}
    for section in settings.functions:
        if passed is not None and section.label in passed:
            found[section.label] = passed[section.label]
            continue
        if section.path is None:
            raise UserError(
                f"reward.functions: {section.label} has no path, since it was passed to train: pass it again in "
                "rewards, or give its path"
            )
        try:
            function = load_object(section.path)
        except UserError as error:
            raise UserError(f"reward.functions: {error}") from error
        if not callable(function):
            raise UserError(f"reward.functions: {section.path} is no function")
        found[section.label] = function
    return found


def with_rewards(
    config: Config, rewards: Mapping[Any, float] | Iterable[RewardFunction]
) -> tuple[Config, dict[str, RewardFunction]]:
    """The config with these rewards, and the functions among them by name.

    ``rewards``: weights of ``"discriminator"``, of functions that the config names, and of functions themselves; or
    functions alone, of weight 1. A reward that is not mentioned keeps the config's weight. Raises ``UserError``.
    """
    weights = rewards if isinstance(rewards, Mapping) else dict.fromkeys(rewards, 1.0)
    sections = {section.label: section.model_dump() for section in config.reward.functions}
    changes: dict[str, Any] = {}
    passed: dict[str, RewardFunction] = {}
    for key, weight in weights.items():
        if key == DISCRIMINATOR:
            changes["reward.discriminator_weight"] = weight
        elif isinstance(key, str):
            if key not in sections:
                known = ", ".join([DISCRIMINATOR, *sections])
                raise UserError(f"rewards: {key!r} is no reward of this config: it has {known}; or pass a function")
            sections[key]["weight"] = weight
        elif callable(key):
            name = _name(key)
            if name in passed:
                raise UserError(f"rewards: two functions are called {name}: give one another __name__")
            passed[name] = key
            sections[name] = {**sections.get(name, {"path": None, "name": name}), "weight": weight}
        else:
            raise UserError(f"rewards: {key!r} is neither a function nor the name of a reward")
    if not weights:
        return config, passed
    return with_values(config, changes | {"reward.functions": list(sections.values())}), passed


def _name(function: RewardFunction) -> str:
    """As TRL has it: ``__name__``, of a partial that of its function, of another object its class's."""
    inner: Any = function
    while not hasattr(inner, "__name__") and hasattr(inner, "func"):
        inner = inner.func
    return re.sub(r"[^A-Za-z0-9_.-]", "", getattr(inner, "__name__", type(inner).__name__))
