"""The reward: what the generator is paid for a response and for each of its tokens."""

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
"""The name of the discriminator's reward beside those of functions."""


@dataclass(frozen=True, slots=True)
class KindTraits:
    """What the rest of the package asks of a kind of discriminator reward, instead of its name.

    Attributes:
        token_share: of a token's part of the logit, how much is the token's part of the reward; None: the reward is no
            sum over tokens.
        negative: some rewards are below 0.
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
    """What the rest of the package asks of a way to combine rewards, instead of its name.

    Attributes:
        additive: a part of one reward is a part of the whole.
        negative: takes rewards and weights below 0.
    """

    additive: bool
    negative: bool


COMBINATIONS: Mapping[RewardCombination, CombinationTraits] = {
    "sum": CombinationTraits(additive=True, negative=True),
    "product": CombinationTraits(additive=False, negative=False),
}

TAKEN = (DISCRIMINATOR, "mean", "deviation", "clipped_share", "base_logprob")
"""Names of other ``reward/`` metrics."""


class RewardFunctionSection(Section):
    """A Python function that rewards responses, with the signature of TRL's reward functions (docs/rewards.md)."""

    path: str | None = Field(
        None, description="module:function or file.py:function, whose code runs; null: passed to train as an argument"
    )
    weight: Annotated[float, Field(allow_inf_nan=False)] = Field(1.0, description="0: logged only")
    name: str | None = Field(None, description="of its metric reward/NAME; null: the function's")

    @model_validator(mode="after")
    def _has_a_name(self) -> RewardFunctionSection:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", self.label):
            raise ValueError(
                f"a reward function named {self.label!r} cannot be logged: give it a name of letters, digits, '_', "
                "'.' and '-'"
            )
        if self.label in TAKEN:
            raise ValueError(f"reward/{self.label} is another metric: give the reward function another name")
        return self

    @property
    def label(self) -> str:
        """The name by which it is logged, weighted and reported."""
        return self.name or (self.path or "").rpartition(":")[2]


class RewardSection(Section):
    """Reward sources: the discriminator and functions of the user's, and how they combine."""

    kind: RewardKind = Field(
        "logit",
        description="from the discriminator's logit; zero: the control, which learns from everything but the "
        "discriminator",
    )
    discriminator_weight: NonNegativeRate = Field(
        1.0, description="of the discriminator's reward beside those of functions; 0: logged only"
    )
    functions: list[RewardFunctionSection] = Field([], description="beside the discriminator's reward")
    combine: RewardCombination = Field(
        "sum",
        description="of the weighted rewards; product: each to the power of its weight, so that none makes up for "
        "another; needs rewards of 0 or more",
    )
    timeout_seconds: Rate = Field(300.0, description="how long one call of a function may take; then the run ends")
    whiten: bool = Field(False, description="to mean 0 and deviation 1 by running statistics over iterations")
    clip: Rate | None = Field(None, description="to plus and minus this, after whitening where that is on; null: off")
    base_logprob: NonNegativeRate = Field(
        0.0,
        description="coefficient of log p of the model before SFT, added to each sampled token's reward, neither "
        "whitened nor clipped; 0: off",
    )

    @model_validator(mode="after")
    def _names_differ(self) -> RewardSection:
        labels = [function.label for function in self.functions]
        if twice := next((label for label in labels if labels.count(label) > 1), None):
            raise ValueError(f"reward.functions has two of the name {twice}: give one another name")
        return self

    @model_validator(mode="after")
    def _rewards_can_be_combined(self) -> RewardSection:
        if self.takes_negative:
            return self
        if self.discriminator_weight > 0 and REWARD_KINDS[self.kind].negative:
            raise ValueError(
                f"reward.combine={self.combine} multiplies rewards of 0 or more, and those of reward.kind={self.kind} "
                "can be below: set reward.kind=probability, or reward.discriminator_weight=0"
            )
        for function in self.functions:
            if function.weight < 0:
                raise ValueError(
                    f"reward.combine={self.combine} takes the weight {function.weight:g} of {function.label} as a "
                    "power, which must not be below 0: raise it, or set reward.combine=sum"
                )
        return self

    @property
    def token_share(self) -> float | None:
        """How much of a token's part of the logit is its part of the reward; None: the reward is no sum over tokens.

        A function rewards whole responses: nothing of it is a token's.
        """
        if self.discriminator_weight == 0:
            return 0.0
        share = REWARD_KINDS[self.kind].token_share
        return None if share is None or not COMBINATIONS[self.combine].additive else share * self.discriminator_weight

    @property
    def takes_negative(self) -> bool:
        """Rewards may be below 0."""
        return COMBINATIONS[self.combine].negative

    @property
    def risks(self) -> list[str]:
        """Announced before any code is loaded."""
        paths = dict.fromkeys(function.path for function in self.functions if function.path)
        return [f"reward.functions={path}: the Python code there will run" for path in paths]
