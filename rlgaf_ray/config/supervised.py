"""Algorithms that learn from whole texts: pairs of a demonstration and a sample, or the best of several samples."""

from __future__ import annotations

from pydantic import Field, model_validator

from rlgaf_ray.config.algorithm import AlgorithmSettings, ExactKLSettings, OtherSections, PreferenceKLSettings, Text
from rlgaf_ray.config.policy_gradient import DEMONSTRATION_COEFFICIENT
from rlgaf_ray.config.section import Fraction, NonNegativeRate, Positive


class DPOSettings(AlgorithmSettings):
    """Demonstrations are preferred to the policy's own samples for the same prompts: no reward is read."""

    key = "dpo"
    rewards_tokens = False

    epochs: Positive = 1
    minibatches: Positive = 1
    self_play: bool = Field(
        False, description="the reference is the policy that sampled the batch, in place of kl.reference: SPIN"
    )
    replay_share: Fraction = Field(
        0.0, description="of the pairs, have a sample of an earlier iteration as the rejected response (DITTO: 0.2)"
    )
    between_share: Fraction = Field(
        0.0, description="of the pairs, prefer this iteration's sample to an earlier one's (DITTO: 0.1)"
    )
    replay_size: Positive = Field(4096, description="samples of earlier iterations that are kept")
    demonstration_coefficient: NonNegativeRate = Field(
        0.0, description="of the demonstrations' negative log-likelihood per token, added to the loss"
    )
    kl: PreferenceKLSettings = PreferenceKLSettings()

    @model_validator(mode="after")
    def _shares_of_one_batch(self) -> DPOSettings:
        if self.replay_share + self.between_share > 1:
            raise ValueError(
                "generator.dpo.replay_share and generator.dpo.between_share are parts of one batch: at most 1"
            )
        return self

    @property
    def text(self) -> Text | None:
        return "answers"

    @property
    def passes(self) -> int:
        return 2 * self.epochs

    def check(self, others: OtherSections) -> None:
        self.check_without_rewards(others, "prefers demonstrations to samples")
        if others.rollout.free_prompts > 0:
            raise ValueError(
                "generator.algorithm=dpo compares each rollout with the demonstration of its prompt: set "
                "rollout.free_prompts=0"
            )
        self.check_minibatches(self.minibatches, others.rollout)
        super().check(others)


class UnpenalisedKLSettings(ExactKLSettings):
    """The same without a penalty by default: the KL is logged only."""

    coefficient: NonNegativeRate = 0.0


class RaftSettings(AlgorithmSettings):
    """Rejection fine-tuning: the best of each prompt's samples is learned like a demonstration."""

    key = "raft"
    rewards_tokens = False

    epochs: Positive = Field(1, description="over the samples that are kept")
    minibatches: Positive = 1
    demonstration_coefficient: NonNegativeRate = Field(0.0, description=DEMONSTRATION_COEFFICIENT)
    kl: UnpenalisedKLSettings = UnpenalisedKLSettings()

    @model_validator(mode="after")
    def _kl_in_the_loss(self) -> RaftSettings:
        if not self.kl.exact:
            raise ValueError("generator.raft.kl.estimator must be exact: it is a term of the loss")
        return self

    @property
    def text(self) -> Text | None:
        return "demonstrations" if self.demonstration_coefficient > 0 else None

    @property
    def passes(self) -> int:
        return self.epochs

    def check(self, others: OtherSections) -> None:
        if others.rollout.samples_per_prompt < 2:
            raise ValueError(
                "generator.algorithm=raft keeps the best of a prompt's samples, and rollout.samples_per_prompt=1: set "
                "it to 2 or more"
            )
        if self.minibatches > others.rollout.prompts_per_iteration:
            raise ValueError(
                f"generator.raft.minibatches={self.minibatches} is more than the "
                f"{others.rollout.prompts_per_iteration} prompts of a batch, of each of which one sample is kept"
            )
        super().check(others)
