"""The guard: what counts as a symptom, and what is done about a verdict."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rlgaf_ray.config.records import CheckpointSection
from rlgaf_ray.config.section import Fraction, NonNegativeRate, Positive, Rate, Section


class GuardLimits(Section):
    """Where a metric, averaged over ``guard.window``, is a symptom. "Start": its mean over the run's first window."""

    distinct_2_ratio: Fraction = Field(
        0.8, description="mode_collapse: rollout/distinct_2 below this part of the start's"
    )
    entropy_ratio: Fraction = Field(0.6, description="mode_collapse: generator/entropy below this part of the start's")
    degenerate_share: Fraction = Field(
        0.1, description="mode_collapse: rollout/degenerate_share higher than at the start by this"
    )
    identical_share: Fraction = Field(
        0.2, description="mode_collapse: rollout/identical_share higher than at the start by this"
    )
    held_out_accuracy: Fraction = Field(0.95, description="discriminator_saturated: held-out accuracy above")
    logit_gap: Rate = Field(8.0, description="discriminator_saturated: held-out logit of real less fake above")
    reward_deviation_ratio: Fraction = Field(
        0.1, description="discriminator_saturated: reward/deviation below this part of the start's"
    )
    kl: Rate = Field(0.5, description="kl_runaway: generator/kl or generator/kl_exact above, nats per token")
    reference_nll: Rate = Field(
        0.7, description="kl_runaway: rollout/reference_nll higher than at the start by this; 0.7: twice the perplexity"
    )
    readings: Positive = Field(
        3, description="discriminator_uninformative, reward_hacking: evaluations, quick ones too, that are averaged"
    )
    told_apart: Fraction = Field(
        0.05, description="discriminator_uninformative: a fresh linear classifier's AUC is above 0.5 by this"
    )
    two_sample_rise: Fraction = Field(
        0.06, description="reward_hacking: a fresh linear classifier's AUC is higher than at the start by this"
    )
    judge_rise: Fraction = Field(
        0.05, description="reward_hacking: the judged share is higher than at the start by this, or the reward is"
    )
    quality_fall: Rate = Field(
        0.1,
        description="drift: the best metric this far below its best at two evaluations in a row, with a higher reward; "
        "of a metric in percent one hundredth is compared",
    )


class HealSection(Section):
    """What each heal changes, beside the way back to a checkpoint and optimisers without moments."""

    learning_rate_factor: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.5, description="of generator.learning_rate and discriminator.learning_rate"
    )
    update_rate_factor: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.5, description="of the discriminator's updates per generator update"
    )
    update_rate_ceiling: Rate = Field(0.5, description="discriminator updates per generator update, at most")
    update_rate_raise: Annotated[float, Field(ge=1.0, allow_inf_nan=False)] = Field(
        2.0,
        description="in place of update_rate_factor and its ceiling after discriminator_uninformative, to 1 update or "
        "more; learning rates and KL coefficient stay",
    )
    kl_factor: Annotated[float, Field(ge=1.0, allow_inf_nan=False)] = Field(
        2.0, description="of the KL coefficient that the run had when it fell ill"
    )
    kl_floor: NonNegativeRate = Field(
        0.1, description="KL coefficient, at least; a run without KL gets one; 0: it does not"
    )


class GuardSection(Section):
    """Symptoms of an unstable run, and the action that follows."""

    action: Literal["warn", "stop", "heal"] = Field(
        "warn", description="on any verdict but non_finite; heal: back to the last healthy checkpoint, gentler"
    )
    non_finite: Literal["stop", "warn", "heal"] = Field("stop", description="on a number that is not finite")
    non_finite_patience: Positive = Field(
        3, description="iterations in a row with a step skipped (gradient or reward not finite) before a verdict"
    )
    window: Annotated[int, Field(ge=2)] = Field(10, description="iterations that are averaged")
    patience: Positive = Field(5, description="iterations that a symptom must hold on before it is a verdict")
    max_heals: Positive = Field(3, description="the next verdict stops the run")
    limits: GuardLimits = GuardLimits()
    heal: HealSection = HealSection()

    @property
    def heals(self) -> bool:
        return "heal" in (self.action, self.non_finite)


def check_rollback(guard: GuardSection, checkpoint: CheckpointSection) -> None:
    """Raise ``ValueError`` if the guard heals but no checkpoint is written to roll back to."""
    if guard.heals and checkpoint.every == 0:
        key = "action" if guard.action == "heal" else "non_finite"
        raise ValueError(
            f"guard.{key}=heal goes back to a checkpoint, and checkpoint.every=0 writes none on the way: "
            f"set checkpoint.every, or guard.{key}=stop"
        )
