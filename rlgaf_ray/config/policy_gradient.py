"""What the sections of REINFORCE and SeqGAN share: the estimator of the policy gradient."""

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
DEMONSTRATION_COEFFICIENT = "of the demonstrations' negative log-likelihood, added to the loss; 0: off"


class PolicyGradientSettings(AlgorithmSettings):
    """One policy gradient, or several clipped steps, on each batch of rollouts."""

    credit: Credit = Field(
        "sequence",
        description="token: what earlier tokens have added to the score is taken off a token's return: same expected "
        "gradient, less noise",
    )
    reward_to_go: bool = Field(
        True,
        description="false: every token's return is the response's total, score less all KL penalties: the response is "
        "one action (RLOO, GRPO)",
    )
    baseline: Baseline = Field(
        "leave_one_out",
        description="RLOO: leave_one_out; GRPO: group_mean, scaled by the group; REINFORCE++: batch_mean; "
        "position_mean: the other responses of the batch at the same position, for credit=token",
    )
    baseline_decay: Fraction = Field(0.95, description="of the moving average")
    advantage_scale: Literal["none", "batch", "group"] = Field(
        "batch", description="divide advantages by this deviation"
    )
    advantage_clip: Rate | None = Field(None, description="scaled advantages are cut to plus and minus this")
    loss_average: LossAverage = Field("token", description=LOSS_AVERAGE)
    discount: Fraction = 1.0
    epochs: Positive = Field(1, description="passes over a batch of rollouts")
    minibatches: Positive = Field(1, description="steps of a pass, each on its share of the rollouts")
    clip_range: Rate | None = Field(
        None,
        description="PPO's clipped ratio to the policy before the first step, as GRPO has it, e.g. 0.2: needed by more "
        "than one step a batch; null: no ratio",
    )
    clip_range_high: Rate | None = Field(None, description="bound of ratios above 1; null: clip_range")
    ratio: RatioLevel = Field("token", description="sequence: one length-normalised ratio a response (GSPO)")
    demonstration_coefficient: NonNegativeRate = Field(0.0, description=DEMONSTRATION_COEFFICIENT)
    kl: KLSettings = KLSettings()

    @model_validator(mode="after")
    def _baseline_fits_the_credit(self) -> PolicyGradientSettings:
        if self.credit == "token" and self.baseline not in ("none", "batch_mean", "position_mean"):
            raise ValueError(
                f"baseline={self.baseline} is of whole sequences: with credit=token take position_mean, batch_mean or "
                "none, or set credit=sequence"
            )
        if self.credit == "token" and not self.reward_to_go:
            raise ValueError("reward_to_go=false gives all tokens one return: set credit=sequence")
        return self

    @model_validator(mode="after")
    def _nothing_else_is_discounted(self) -> PolicyGradientSettings:
        if self.discount == 1.0:
            return self
        if self.credit == "token":
            raise ValueError(
                f"discount={self.discount:g} discounts the score, but not the earlier tokens' parts that credit=token "
                "subtracts from it: set discount=1 or credit=sequence"
            )
        if self.baseline in ("leave_one_out", "group_mean", "moving_average"):
            raise ValueError(
                f"baseline={self.baseline} is a mean of undiscounted totals, and discount={self.discount:g} makes "
                "returns smaller: set discount=1, or take position_mean, batch_mean or none"
            )
        if not self.reward_to_go:
            raise ValueError(f"reward_to_go=false discounts nothing, but discount={self.discount:g}: set discount=1")
        return self

    @model_validator(mode="after")
    def _several_steps_are_clipped(self) -> PolicyGradientSettings:
        if self.clip_range is not None:
            return self
        if self.epochs * self.minibatches > 1:
            raise ValueError(
                f"epochs={self.epochs} and minibatches={self.minibatches} step away from the policy that sampled: set "
                "clip_range, e.g. 0.2, or both to 1"
            )
        for key, used in (("clip_range_high", self.clip_range_high is not None), ("ratio", self.ratio != "token")):
            if used:
                raise ValueError(f"{key} is read only with clip_range: set clip_range, or leave {key} out")
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
        """Raise ``ValueError`` for batches and groups too small for the baseline and scale that read them."""
        of_groups = {
            f"baseline={self.baseline}": self.baseline in ("leave_one_out", "group_mean"),
            "advantage_scale=group": self.advantage_scale == "group",
        }
        for setting in (each for each, used in of_groups.items() if used and rollout.samples_per_prompt < 2):
            raise ValueError(
                f"generator.{self.key}.{setting} compares the samples of one prompt, and rollout.samples_per_prompt=1: "
                f"set it to 2 or more, or change generator.{self.key}.{setting.partition('=')[0]}"
            )
        of_batches = {
            f"baseline={self.baseline}": self.baseline in ("position_mean", "batch_mean"),
            "advantage_scale=batch": self.advantage_scale == "batch",
        }
        for setting in (each for each, used in of_batches.items() if used and rollout.batch_size < 2):
            raise ValueError(
                f"generator.{self.key}.{setting} compares the rollouts of a batch, and rollout.batch_size=1: "
                f"set it to 2 or more, or generator.{self.key}.{setting.partition('=')[0]}=none"
            )
