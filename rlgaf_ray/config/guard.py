"""The guard: thresholds of its symptoms, and the action on a verdict."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rlgaf_ray.config.records import CheckpointSection
from rlgaf_ray.config.section import Fraction, NonNegativeRate, Positive, Rate, Section


class GuardLimits(Section):
    """Thresholds of metrics averaged over ``guard.window``; "start" is the mean over the run's first window."""

    distinct_2_ratio: Fraction = Field(
        0.8, description="mode_collapse: rollout/distinct_2 below this fraction of its start"
    )
    entropy_ratio: Fraction = Field(
        0.6, description="mode_collapse: generator/entropy below this fraction of its start"
    )
    degenerate_share: Fraction = Field(
        0.1, description="mode_collapse: rollout/degenerate_share above its start by more than this"
    )
    identical_share: Fraction = Field(
        0.2, description="mode_collapse: rollout/identical_share above its start by more than this"
    )
    held_out_accuracy: Fraction = Field(0.95, description="discriminator_saturated: held-out accuracy above this")
    logit_gap: Rate = Field(8.0, description="discriminator_saturated: held-out logit gap (real - fake) above this")
    reward_deviation_ratio: Fraction = Field(
        0.1, description="discriminator_saturated: reward/deviation below this fraction of its start"
    )
    kl: Rate = Field(0.5, description="kl_runaway: generator/kl or generator/kl_exact above this, in nats per token")
    reference_nll: Rate = Field(
        0.7, description="kl_runaway: rollout/reference_nll above its start by more than this; 0.7: doubled perplexity"
    )
    readings: Positive = Field(
        3, description="discriminator_uninformative, reward_hacking: number of evaluations, full or quick, to average"
    )
    auc_margin: Fraction = Field(
        0.08,
        description="discriminator_uninformative: at chance while a linear classifier's AUC is higher by this or more",
    )
    two_sample_rise: Fraction = Field(
        0.06, description="reward_hacking: a fresh linear classifier's AUC above its start by more than this"
    )
    judge_rise: Fraction = Field(
        0.05, description="reward_hacking: judged share above its start by more than this, or any rise of the reward"
    )
    quality_fall: Rate = Field(
        0.1,
        description="drift: best_metric worse than its best value by more than this in two consecutive evaluations "
        "while the reward is higher; metrics in percent are divided by 100",
    )


class HealSection(Section):
    """Changes after each rollback, besides the optimisers' moments, which are reset."""

    learning_rate_factor: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.5, description="factor of generator.learning_rate and discriminator.learning_rate"
    )
    update_rate_factor: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.5, description="factor of the discriminator updates per generator update"
    )
    update_rate_ceiling: Rate = Field(
        0.5, description="upper bound of discriminator updates per generator update after a rollback"
    )
    update_rate_raise: Annotated[float, Field(ge=1.0, allow_inf_nan=False)] = Field(
        2.0,
        description="after discriminator_uninformative: factor of the update rate, then at least 1, without other "
        "changes",
    )
    kl_factor: Annotated[float, Field(ge=1.0, allow_inf_nan=False)] = Field(
        2.0, description="factor of the KL coefficient in use when the guard fired"
    )
    kl_floor: NonNegativeRate = Field(
        0.1, description="lower bound of the KL coefficient after a rollback, also for runs without KL; 0: none"
    )


class GuardSection(Section):
    """Symptoms of an unstable run, and the action that follows."""

    action: Literal["warn", "stop", "heal"] = Field(
        "warn",
        description="on any verdict but non_finite; heal: roll back to a healthy checkpoint, with gentler settings",
    )
    non_finite: Literal["stop", "warn", "heal"] = Field("stop", description="action on a non-finite metric or weight")
    non_finite_patience: Positive = Field(
        3, description="consecutive iterations with skipped steps (non-finite gradient or reward) before a verdict"
    )
    window: Annotated[int, Field(ge=2)] = Field(10, description="iterations to average over")
    patience: Positive = Field(5, description="consecutive iterations with a symptom before a verdict")
    max_heals: Positive = Field(3, description="number of rollbacks before the next verdict stops the run")
    limits: GuardLimits = GuardLimits()
    heal: HealSection = HealSection()

    @property
    def heals(self) -> bool:
        return "heal" in (self.action, self.non_finite)


def check_rollback(guard: GuardSection, checkpoint: CheckpointSection) -> None:
    """Raise ``ValueError`` if the guard rolls back but no checkpoints are written during training."""
    if guard.heals and checkpoint.every == 0:
        key = "action" if guard.action == "heal" else "non_finite"
        raise ValueError(
            f"guard.{key}=heal rolls back to a checkpoint, but checkpoint.every=0 writes none before the end: set "
            f"checkpoint.every=50, or guard.{key}=stop"
        )
