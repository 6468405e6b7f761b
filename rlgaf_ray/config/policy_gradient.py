"""Policy-gradient settings that REINFORCE and SeqGAN share."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rlgaf_ray.config.algorithm import (
    LOSS_AVERAGE,
    AlgorithmSettings,
    KLSettings,
    LossAverage,
    OtherSections,
    RatioLevel,
    Text,
)
from rlgaf_ray.config.rollout import RolloutSection
from rlgaf_ray.config.section import Fraction, NonNegativeRate, Positive, Rate

Credit = Literal["sequence", "token"]
Baseline = Literal["none", "moving_average", "leave_one_out", "group_mean", "batch_mean", "position_mean"]
DEMONSTRATION_COEFFICIENT = "weight of the demonstrations' NLL in the loss; 0: off"


class PolicyGradientSettings(AlgorithmSettings):
    """One policy-gradient step, or several clipped ones, per batch of rollouts."""

    credit: Credit = Field(
        "sequence",
        description="sequence: every token is credited with the response's score; token: without the part that earlier "
        "tokens contributed, same expected gradient and lower variance",
    )
    reward_to_go: bool = Field(
        True,
        description="true: a token's return sums its own and later rewards; false: every token gets the response's "
        "total, KL penalties included, as one action (RLOO, GRPO)",
    )
    baseline: Baseline = Field(
        "leave_one_out",
        description="leave_one_out: as in RLOO; group_mean: as in GRPO, with advantage_scale=group; batch_mean: as in "
        "REINFORCE++; position_mean: mean of the batch's other responses at the same position, for credit=token",
    )
    baseline_decay: Fraction = Field(0.95, description="baseline=moving_average: its decay")
    advantage_scale: Literal["none", "batch", "group"] = Field(
        "batch", description="divide advantages by the standard deviation of the batch or group"
    )
    advantage_clip: Rate | None = Field(None, description="clip scaled advantages to [-x, x]; null: off")
    loss_average: LossAverage = Field("token", description=LOSS_AVERAGE)
    discount: Fraction = 1.0
    epochs: Positive = Field(1, description="passes over each batch of rollouts")
    minibatches: Positive = Field(1, description="optimiser steps per pass, each on an equal share of the rollouts")
    clip_range: Rate | None = Field(
        None,
        description="clip range of PPO's probability ratio, as in GRPO, e.g. 0.2; required for more than one step per "
        "batch; null: no ratio",
    )
    clip_range_high: Rate | None = Field(None, description="upper clip range (clip-higher); null: clip_range")
    ratio: RatioLevel = Field(
        "token", description="token: one ratio per token; sequence: one length-normalised ratio per response (GSPO)"
    )
    demonstration_coefficient: NonNegativeRate = Field(0.0, description=DEMONSTRATION_COEFFICIENT)
    kl: KLSettings = KLSettings()

    @model_validator(mode="after")
    def _kl_estimator_fits_its_placement(self) -> PolicyGradientSettings:
        kl, key = self.kl, f"generator.{self.key}.kl"
        if kl.placement == "loss" and kl.estimator == "k1":
            raise ValueError(
                f"{key}.estimator=k1 has no useful gradient as a loss: set it to exact, k2 or k3, or set "
                f"{key}.placement=reward"
            )
        if kl.placement == "reward" and kl.exact:
            raise ValueError(f"{key}.estimator=exact cannot be a per-token reward: set {key}.placement=loss")
        return self

    @model_validator(mode="after")
    def _baseline_fits_the_credit(self) -> PolicyGradientSettings:
        if self.credit == "token" and self.baseline not in ("none", "batch_mean", "position_mean"):
            raise ValueError(
                f"baseline={self.baseline} is per response and does not fit credit=token: set baseline=position_mean, "
                "batch_mean or none, or credit=sequence"
            )
        if self.credit == "token" and not self.reward_to_go:
            raise ValueError("reward_to_go=false gives all tokens the same return: set credit=sequence")
        return self

    @model_validator(mode="after")
    def _nothing_else_is_discounted(self) -> PolicyGradientSettings:
        if self.discount == 1.0:
            return self
        if self.credit == "token":
            raise ValueError(
                f"discount={self.discount:g} does not apply to the earlier tokens' score that credit=token subtracts: "
                "set discount=1, or credit=sequence"
            )
        if self.baseline in ("leave_one_out", "group_mean", "moving_average"):
            raise ValueError(
                f"baseline={self.baseline} is a mean of undiscounted returns, but discount={self.discount:g}: set "
                "discount=1, or baseline=position_mean, batch_mean or none"
            )
        if not self.reward_to_go:
            raise ValueError(
                f"reward_to_go=false ignores discount={self.discount:g}: set discount=1, or reward_to_go=true"
            )
        return self

    @model_validator(mode="after")
    def _several_steps_are_clipped(self) -> PolicyGradientSettings:
        if self.clip_range is not None:
            return self
        if self.epochs * self.minibatches > 1:
            raise ValueError(
                f"epochs={self.epochs} and minibatches={self.minibatches} make several off-policy steps per batch: set "
                "clip_range, e.g. 0.2, or both to 1"
            )
        for key, used in (("clip_range_high", self.clip_range_high is not None), ("ratio", self.ratio != "token")):
            if used:
                raise ValueError(f"{key} has no effect without clip_range: set clip_range, or remove {key}")
        return self

    @property
    def text(self) -> Text | None:
        return "demonstrations" if self.demonstration_coefficient > 0 else None

    @property
    def passes(self) -> int:
        return self.epochs

    def check(self, others: OtherSections) -> None:
        self._check_sizes(others.rollout)
        self.check_minibatches(self.minibatches, others.rollout)
        super().check(others)

    def _check_sizes(self, rollout: RolloutSection) -> None:
        """Raise ``ValueError`` if batch or group is too small for the baseline or the advantage scale."""
        of_groups = {
            f"baseline={self.baseline}": self.baseline in ("leave_one_out", "group_mean"),
            "advantage_scale=group": self.advantage_scale == "group",
        }
        for setting in (each for each, used in of_groups.items() if used and rollout.samples_per_prompt < 2):
            raise ValueError(
                f"generator.{self.key}.{setting} needs several samples per prompt, but rollout.samples_per_prompt=1: "
                f"set it to 2 or more, or change generator.{self.key}.{setting.partition('=')[0]}"
            )
        of_batches = {
            f"baseline={self.baseline}": self.baseline in ("position_mean", "batch_mean"),
            "advantage_scale=batch": self.advantage_scale == "batch",
        }
        for setting in (each for each, used in of_batches.items() if used and rollout.batch_size < 2):
            raise ValueError(
                f"generator.{self.key}.{setting} needs several rollouts per batch, but rollout.batch_size=1: "
                f"set it to 2 or more, or generator.{self.key}.{setting.partition('=')[0]}=none"
            )
