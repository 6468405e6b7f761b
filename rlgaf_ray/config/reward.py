"""The reward: its sources, how they are combined, and token-level terms."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlgaf_ray.config.section import NonNegativeRate, Rate, Section

RewardKind = Literal["logit", "probability", "probability_centered", "log_probability", "zero"]
RewardCombination = Literal["sum", "product"]
DISCRIMINATOR = "discriminator"
"""Name of the discriminator's reward, next to the names of reward functions."""


@dataclass(frozen=True, slots=True)
class KindTraits:
    """Traits of a discriminator reward; the rest of the package reads these, never the kind's name.

    Attributes:
        token_share: factor from a token's part of the logit to its part of the reward; None if the reward is not a sum
            over tokens.
        negative: rewards can be negative.
    """

    token_share: float | None = None
    negative: bool = True


REWARD_KINDS: Mapping[RewardKind, KindTraits] = {
    "logit": KindTraits(token_share=1.0),
    "probability": KindTraits(negative=False),
    "probability_centered": KindTraits(),
    "log_probability": KindTraits(),
    "zero": KindTraits(token_share=0.0),
}


@dataclass(frozen=True, slots=True)
class CombinationTraits:
    """Traits of a way to combine rewards; the rest of the package reads these, never its name.

    Attributes:
        additive: the combined reward is a weighted sum, so token-level parts add up.
        negative: accepts negative rewards and weights.
    """

    additive: bool
    negative: bool


COMBINATIONS: Mapping[RewardCombination, CombinationTraits] = {
    "sum": CombinationTraits(additive=True, negative=True),
    "product": CombinationTraits(additive=False, negative=False),
}

TAKEN = (DISCRIMINATOR, "mean", "deviation", "clipped_share", "base_logprob")
"""Reserved names, of other ``reward/`` metrics."""


class RewardFunctionSection(Section):
    """A reward function in Python, with the signature of TRL's (docs/rewards.md)."""

    path: str | None = Field(
        None, description="module:function or file.py:function, whose code is run; null: passed to train() instead"
    )
    weight: Annotated[float, Field(allow_inf_nan=False)] = Field(
        1.0, description="weight of this reward; 0: log it only"
    )
    name: str | None = Field(None, description="NAME of its metric reward/NAME; null: the function's name")

    @model_validator(mode="after")
    def _has_a_name(self) -> RewardFunctionSection:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", self.label):
            raise ValueError(
                f"the reward function name {self.label!r} is not a metric name: set name to letters, digits, '_', '.' "
                "and '-'"
            )
        if self.label in TAKEN:
            raise ValueError(f"the reward function name {self.label} is reserved for another metric: set another name")
        return self

    @property
    def label(self) -> str:
        """Name in metrics, weights and messages."""
        return self.name or (self.path or "").rpartition(":")[2]


class RewardSection(Section):
    """Reward sources: the discriminator and functions of the user's, and how they combine."""

    kind: RewardKind = Field(
        "logit",
        description="how the discriminator's logit becomes a reward; zero: control run without that signal",
    )
    discriminator_weight: NonNegativeRate = Field(
        1.0, description="weight of the discriminator's reward when combined with functions; 0: log it only"
    )
    functions: list[RewardFunctionSection] = Field([], description="reward functions besides the discriminator")
    combine: RewardCombination = Field(
        "sum",
        description="sum: weighted sum; product: product of the rewards raised to their weights, so that one cannot "
        "compensate for another (non-negative rewards only)",
    )
    timeout_seconds: Rate = Field(
        300.0, description="seconds after which a reward function call fails and the run stops"
    )
    whiten: bool = Field(
        False, description="normalise rewards to mean 0 and deviation 1 with running statistics over iterations"
    )
    clip: Rate | None = Field(None, description="clip rewards to [-x, x], after whitening; null: off")
    base_logprob: NonNegativeRate = Field(
        0.0,
        description="coefficient of the base model's log-prob (before SFT), added to each sampled token's reward after "
        "whitening and clipping; 0: off",
    )

    @model_validator(mode="after")
    def _names_differ(self) -> RewardSection:
        labels = [function.label for function in self.functions]
        if twice := next((label for label in labels if labels.count(label) > 1), None):
            raise ValueError(f"reward.functions has two functions named {twice}: set another name for one of them")
        return self

    @model_validator(mode="after")
    def _rewards_can_be_combined(self) -> RewardSection:
        if self.takes_negative:
            return self
        if self.discriminator_weight > 0 and REWARD_KINDS[self.kind].negative:
            raise ValueError(
                f"reward.combine={self.combine} needs non-negative rewards, but reward.kind={self.kind} can be "
                "negative: set reward.kind=probability, or reward.discriminator_weight=0"
            )
        for function in self.functions:
            if function.weight < 0:
                raise ValueError(
                    f"reward.combine={self.combine} needs non-negative weights, but {function.label} has "
                    f"{function.weight:g}: raise it, or set reward.combine=sum"
                )
        return self

    @property
    def token_share(self) -> float | None:
        """Factor from a token's part of the logit to its part of the reward; None if the reward is no sum over tokens.

        Reward functions score full responses and have no token-level part.
        """
        if self.discriminator_weight == 0:
            return 0.0
        share = REWARD_KINDS[self.kind].token_share
        return None if share is None or not COMBINATIONS[self.combine].additive else share * self.discriminator_weight

    @property
    def takes_negative(self) -> bool:
        """Whether negative rewards are accepted."""
        return COMBINATIONS[self.combine].negative

    @property
    def risks(self) -> list[str]:
        """Warnings to print before any user code is imported."""
        paths = dict.fromkeys(function.path for function in self.functions if function.path)
        return [f"reward.functions={path}: its Python code will run" for path in paths]
