"""Reward functions with TRL's signature, loaded from paths in the config or passed as arguments."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from rlgaf_ray.config import Config, with_values
from rlgaf_ray.config.reward import DISCRIMINATOR, RewardSection
from rlgaf_ray.errors import UserError
from rlgaf_ray.plugins import load_object

Values = Sequence[float | None]
"""One reward per response; None if the reward does not apply to it."""


class RewardFunction(Protocol):
    """A reward function with TRL's signature: ``function(prompts, completions, completion_ids, **columns)``.

    It is called once per batch with lists of one entry per response: ``prompts`` and ``completions`` as text, or as
    messages (``{"role": ..., "content": ...}``) if the data's prompts are messages; ``completion_ids`` as lists of
    ints; every other column of the data by name; and TRL's ``trainer_state``, ``log_extra`` and ``log_metric``.
    Arguments that the function does not accept are omitted. It returns a finite number per response, or None if the
    reward does not apply to it. It may be ``async``.
    """

    def __call__(self, *arguments: Any, **columns: Any) -> Values | Awaitable[Values]:
        """One reward for each response of the batch."""
        ...


def reward_functions(
    settings: RewardSection, passed: Mapping[str, RewardFunction] | None = None
) -> dict[str, RewardFunction]:
    """Collect the functions of ``reward.functions`` by name: passed as arguments, or else loaded from their path.

    Raises ``UserError`` for a function that cannot be loaded, or that was passed as an argument and is missing.
    """
    found: dict[str, RewardFunction] = {}
    for section in settings.functions:
        if passed is not None and section.label in passed:
            found[section.label] = passed[section.label]
            continue
        if section.path is None:
            raise UserError(
                f"reward.functions: {section.label} was passed as an argument and has no path: pass it again in "
                "rewards, or set its path"
            )
        try:
            function = load_object(section.path)
        except UserError as error:
            raise UserError(f"reward.functions: {error}") from error
        if not callable(function):
            raise UserError(f"reward.functions: {section.path} is not a function")
        found[section.label] = function
    return found


def with_rewards(
    config: Config, rewards: Mapping[Any, float] | Iterable[RewardFunction]
) -> tuple[Config, dict[str, RewardFunction]]:
    """Add rewards to the config; return it with the passed functions by name.

    ``rewards``: a mapping to weights from ``"discriminator"``, names of the config's functions, or functions; or
    functions only, with weight 1. Other rewards keep the config's weight. Raises ``UserError``.
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
                raise UserError(f"rewards: unknown reward {key!r}: use {known}, or pass a function")
            sections[key]["weight"] = weight
        elif callable(key):
            name = _name(key)
            if name in passed:
                raise UserError(f"rewards: two functions are named {name}: set another __name__ for one of them")
            passed[name] = key
            sections[name] = {**sections.get(name, {"path": None, "name": name}), "weight": weight}
        else:
            raise UserError(f"rewards: {key!r} is neither a function nor the name of a reward: pass one of them")
    if not weights:
        return config, passed
    return with_values(config, changes | {"reward.functions": list(sections.values())}), passed


def _name(function: RewardFunction) -> str:
    """Name a function as TRL does: ``__name__``, that of a partial's function, or the class of a callable object."""
    inner: Any = function
    while not hasattr(inner, "__name__") and hasattr(inner, "func"):
        inner = inner.func
    return re.sub(r"[^A-Za-z0-9_.-]", "", getattr(inner, "__name__", type(inner).__name__))
