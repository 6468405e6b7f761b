"""Algorithms that train on full responses: DPO on pairs, RAFT on the best of several samples."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rlgaf_ray.config.algorithm import AlgorithmSettings, ExactKLSettings, OtherSections, PreferenceKLSettings, Text
from rlgaf_ray.config.policy_gradient import DEMONSTRATION_COEFFICIENT
from rlgaf_ray.config.section import Fraction, NonNegativeRate, Positive


class DPOSettings(AlgorithmSettings):
    """DPO that prefers demonstrations to the policy's samples or to labelled negatives, without rewards."""

    key = "dpo"
    rewards_tokens = False

    epochs: Positive = 1
    minibatches: Positive = 1
    rejected: Literal["samples", "labels"] = Field(
        "samples",
        description="rejected responses: the policy's own samples, or labelled negatives, of the same prompt if it has "
        "one, else with their own prompts",
    )
    self_play: bool = Field(
        False, description="use the policy that sampled the batch as the reference, as in SPIN, instead of kl.reference"
    )
    replay_share: Fraction = Field(
        0.0, description="share of pairs whose rejected response is from an earlier iteration (DITTO: 0.2)"
    )
    between_share: Fraction = Field(
        0.0, description="share of pairs that prefer a current sample to one of an earlier iteration (DITTO: 0.1)"
    )
    replay_size: Positive = Field(4096, description="capacity of the replay buffer, in samples")
    demonstration_coefficient: NonNegativeRate = Field(
        0.0, description="weight of the demonstrations' NLL per token in the loss; 0: off"
    )
    kl: PreferenceKLSettings = PreferenceKLSettings()

    @model_validator(mode="after")
    def _shares_of_one_batch(self) -> DPOSettings:
        if self.replay_share + self.between_share > 1:
            raise ValueError(
                f"generator.dpo.replay_share={self.replay_share:g} and generator.dpo.between_share="
                f"{self.between_share:g} sum to more than 1: lower one of them"
            )
        return self

    @model_validator(mode="after")
    def _samples_are_rejected(self) -> DPOSettings:
        if self.rejected == "labels":
            for name in ("replay_share", "between_share"):
                if getattr(self, name) > 0:
                    raise ValueError(
                        f"generator.dpo.{name} is a share of pairs with the policy's own samples, which "
                        "generator.dpo.rejected=labels does not use: remove one of them"
                    )
        return self

    @property
    def text(self) -> Text | None:
        return "pairs" if self.rejected == "labels" else "answers"

    @property
    def passes(self) -> int:
        return 2 * self.epochs

    def check(self, others: OtherSections) -> None:
        self.check_without_rewards(others, "learns from preference pairs")
        if others.rollout.free_prompts > 0:
            raise ValueError(
                "generator.algorithm=dpo needs a demonstration for every prompt: set rollout.free_prompts=0"
            )
        self.check_minibatches(self.minibatches, others.rollout)
        super().check(others)


class UnpenalisedKLSettings(ExactKLSettings):
    """The same without a penalty by default: the KL is logged only."""

    coefficient: NonNegativeRate = 0.0


class RaftSettings(AlgorithmSettings):
    """Rejection fine-tuning (RAFT): next-token loss on the best of each prompt's samples."""

    key = "raft"
    rewards_tokens = False

    epochs: Positive = Field(1, description="passes over the selected samples")
    minibatches: Positive = 1
    demonstration_coefficient: NonNegativeRate = Field(0.0, description=DEMONSTRATION_COEFFICIENT)
    kl: UnpenalisedKLSettings = UnpenalisedKLSettings()

    @model_validator(mode="after")
    def _kl_in_the_loss(self) -> RaftSettings:
        if not self.kl.exact:
            raise ValueError("generator.raft supports the exact KL only: set generator.raft.kl.estimator=exact")
        if self.kl.placement != "loss":
            raise ValueError("generator.raft has no rewards of tokens: set generator.raft.kl.placement=loss")
        return self

    @property
    def text(self) -> Text | None:
        return "demonstrations" if self.demonstration_coefficient > 0 else None

    @property
    def passes(self) -> int:
        return self.epochs

    def check(self, others: OtherSections) -> None:
        if others.reward.base_logprob > 0:
            raise ValueError(
                "generator.algorithm=raft selects by the rewards of full responses: remove reward.base_logprob"
            )
        if others.rollout.samples_per_prompt < 2:
            raise ValueError(
                "generator.algorithm=raft selects the best of a prompt's samples, but rollout.samples_per_prompt=1: "
                "set it to 2 or more"
            )
        if self.minibatches > others.rollout.prompts_per_iteration:
            raise ValueError(
                f"generator.raft.minibatches={self.minibatches} exceeds the {others.rollout.prompts_per_iteration} "
                "selected samples of a batch, one per prompt: lower it, or raise rollout.batch_size"
            )
        super().check(others)
