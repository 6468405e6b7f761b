"""The generator's update: the algorithms with their rules, and the optimiser.

To add an algorithm, write its section here and give ``GeneratorSection`` a field of its name (docs/algorithms.md).
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from rlgaf_ray.config.algorithm import (
    LOSS_AVERAGE,
    AlgorithmSettings,
    ExactKLSettings,
    GumbelKLSettings,
    KLSettings,
    LossAverage,
    OtherSections,
    RatioLevel,
    Text,
)
from rlgaf_ray.config.policy_gradient import DEMONSTRATION_COEFFICIENT, Baseline, Credit, PolicyGradientSettings
from rlgaf_ray.config.reward import COMBINATIONS, REWARD_KINDS
from rlgaf_ray.config.section import (
    Fraction,
    LearningRateSchedule,
    NonNegative,
    NonNegativeRate,
    Pair,
    Positive,
    Rate,
    Section,
)
from rlgaf_ray.config.supervised import DPOSettings, RaftSettings

AlgorithmName = Literal["reinforce", "ppo", "seqgan", "gumbel", "dpo", "raft"]


class ReinforceSettings(PolicyGradientSettings):
    """REINFORCE; with ``clip_range`` GRPO and its relatives."""

    key = "reinforce"

    credit: Credit = "token"
    baseline: Baseline = "position_mean"
    demonstration_coefficient: NonNegativeRate = Field(0.3, description=DEMONSTRATION_COEFFICIENT)
    kl: ExactKLSettings = ExactKLSettings()

    def check(self, others: OtherSections) -> None:
        if self.credit == "token":
            self._check_token_credit(others)
        super().check(others)

    def _check_token_credit(self, others: OtherSections) -> None:
        reward, discriminator = others.reward, others.discriminator
        if reward.discriminator_weight == 0:  # nothing is a token's: the returns are those of whole responses
            return
        needed = {
            "reward.combine=sum": COMBINATIONS[reward.combine].additive,
            "reward.kind=logit": REWARD_KINDS[reward.kind].token_share is not None,
            "reward.whiten=false": not reward.whiten,
            "reward.clip=null": reward.clip is None,
            "discriminator.architecture=generator": discriminator.traits.scalar_head,
            "discriminator.pooling=mean": discriminator.pooling == "mean",
        }
        for setting in (each for each, met in needed.items() if not met):
            raise ValueError(
                f"generator.reinforce.credit=token needs a reward that is a sum over tokens: set {setting}, "
                "or generator.reinforce.credit=sequence"
            )
        if discriminator.view == "last_tokens" and others.stop_at_end_of_text:
            raise ValueError(
                "generator.reinforce.credit=token credits tokens before it is known which are the last ones: with "
                "discriminator.view=last_tokens set generator.reinforce.credit=sequence, or "
                "rollout.stop_at_end_of_text=false, with which all responses have one length"
            )


class SeqGANSettings(PolicyGradientSettings):
    """REINFORCE whose returns are Monte-Carlo action values."""

    key = "seqgan"
    searches = True
    sync_only = "searches with the engines that would make the next rollouts meanwhile"

    num_completions: Positive = Field(16, description="completions of each prefix")
    stride: Positive = Field(1, description="complete every k-th prefix; its tokens share the value")
    rollout_policy_rate: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0, description="completions come from a moving average of the policy with this rate (SeqGAN: 0.8); 0: from it"
    )

    @model_validator(mode="after")
    def _values_are_of_tokens(self) -> SeqGANSettings:
        if self.credit == "token":
            raise ValueError(
                "generator.seqgan.credit: SeqGAN's action values are each token's own; leave it at sequence"
            )
        if not self.reward_to_go:
            raise ValueError(
                "generator.seqgan.reward_to_go: SeqGAN's action values are each token's own; leave it at true"
            )
        return self

    @property
    def rollout_average(self) -> float:
        return self.rollout_policy_rate


class PPOSettings(AlgorithmSettings):
    """PPO with a learned critic."""

    key = "ppo"
    trains_critic = True

    epochs: Positive = 2
    minibatches: Positive = 2
    clip_range: Rate = Field(0.2, description="bound of ratios below 1, and above it without clip_range_high")
    clip_range_high: Rate | None = Field(None, description="bound of ratios above 1; null: clip_range")
    value_clip_range: Rate = 0.2
    value_coefficient: NonNegativeRate = 0.5
    value_learning_rate: Rate = 1e-4
    value_learning_rate_schedule: LearningRateSchedule = Field(
        "constant", description="of the critic, over run.iterations; linear and cosine end at 0"
    )
    discount: Fraction = 1.0
    gae_lambda: Fraction = 0.95
    whiten_rewards: bool = Field(True, description="by running statistics over iterations")
    whiten_advantages: bool = True
    critic_warmup_iterations: NonNegative = Field(5, description="the critic learns alone before the policy moves")
    pretraining_coefficient: NonNegativeRate = Field(
        0.0, description="gamma of InstructGPT's PPO-ptx, of the mean per token (the paper's is of whole texts)"
    )
    ratio: RatioLevel = Field(
        "token",
        description="sequence: one length-normalised ratio a response, GSPO's with loss_average=sequence; the critic's "
        "advantages still differ by token (configs/recipes/gspo.yaml is GSPO)",
    )
    loss_average: LossAverage = Field("token", description=LOSS_AVERAGE)
    kl: KLSettings = KLSettings()

    @model_validator(mode="after")
    def _kl_in_reward(self) -> PPOSettings:
        if self.kl.placement != "reward":
            raise ValueError(
                "generator.ppo.kl.placement must be reward: InstructGPT's objective takes the KL from the reward"
            )
        return self

    @property
    def text(self) -> Text | None:
        return "pretraining" if self.pretraining_coefficient > 0 else None

    @property
    def passes(self) -> int:
        return self.epochs

    def check(self, others: OtherSections) -> None:
        if self.whiten_rewards and others.reward.whiten:
            raise ValueError(
                "generator.ppo.whiten_rewards whitens already: set it to false, or leave out reward.whiten"
            )
        self.check_minibatches(self.minibatches, others.rollout)
        super().check(others)


class GumbelSettings(AlgorithmSettings):
    """Gumbel-softmax: the discriminator's gradient through soft tokens."""

    key = "gumbel"
    needs_discriminator = True
    rewards_tokens = False
    sync_only = "learns from the newest policy's own samples"

    mode: Literal["autoregressive", "conditional"] = Field(
        "autoregressive",
        description="autoregressive: the learner samples, each soft token feeds the next; conditional: tokens of the "
        "rollouts in one pass, without the gradient through later tokens",
    )
    temperature_start: Rate = Field(1.0, description="of the relaxation, at the first iteration")
    temperature_end: Rate = Field(0.5, description="at the last one; geometric in between")
    kl: GumbelKLSettings = GumbelKLSettings()

    @property
    def samples_again(self) -> bool:
        return self.mode == "autoregressive"

    def check(self, others: OtherSections) -> None:
        discriminator = others.discriminator
        if not discriminator.traits.scalar_head:
            raise ValueError(
                "generator.algorithm=gumbel needs a discriminator that reads soft tokens: "
                "set discriminator.architecture=generator"
            )
        self.check_without_rewards(others, "learns from the discriminator's gradient")
        if others.learner.num_workers > 1:
            raise ValueError(
                "generator.algorithm=gumbel trains in one process, which holds the discriminator too: "
                "set learner.num_workers=1"
            )
        if discriminator.match_lengths:
            raise ValueError(
                "generator.algorithm=gumbel reads responses with their end, which discriminator.match_lengths hides "
                "from the discriminator: leave it out"
            )
        if discriminator.view != "response":
            raise ValueError(
                f"generator.algorithm=gumbel reads whole responses, of which discriminator.view={discriminator.view} "
                "hides a part from the discriminator: set discriminator.view=response"
            )
        super().check(others)


class GeneratorSection(Section):
    """The algorithm that trains the generator, and its optimiser."""

    algorithm: AlgorithmName = "reinforce"
    reinforce: ReinforceSettings = ReinforceSettings()
    seqgan: SeqGANSettings = SeqGANSettings()
    ppo: PPOSettings = PPOSettings()
    gumbel: GumbelSettings = GumbelSettings()
    dpo: DPOSettings = DPOSettings()
    raft: RaftSettings = RaftSettings()
    learning_rate: Rate = 3e-5
    learning_rate_schedule: LearningRateSchedule = "linear"
    learning_rate_warmup: NonNegative = Field(0, description="iterations of linear warm-up")
    betas: Pair = (0.9, 0.95)
    weight_decay: NonNegativeRate = 0.0
    max_grad_norm: Rate = 1.0
    entropy_bonus: NonNegativeRate = Field(
        0.0, description="coefficient of -log pi, added to each sampled token's reward; 0: off"
    )
    average_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.985,
        description="evaluate and export a moving average of the weights with this decay at each optimiser "
        "step (of which a minibatch makes one); 0: off",
    )
    importance_weight_cap: Rate | None = Field(
        None, description="bound of importance weights between learner and rollout log-probs; none: off, async: 2.0"
    )
    importance_weight_mode: Literal["cap", "mask", "none"] = Field(
        "cap", description="cap: weights end at the bound; mask: tokens beyond it count for nothing; none: no weights"
    )

    @model_validator(mode="after")
    def _mask_keeps_unchanged_tokens(self) -> GeneratorSection:
        cap = self.importance_weight_cap
        if self.importance_weight_mode == "mask" and cap is not None and cap < 1:
            raise ValueError(
                f"generator.importance_weight_cap={cap:g} with generator.importance_weight_mode=mask would drop every "
                "token that the policy did not change: set it to 1 or more"
            )
        return self

    @property
    def active(self) -> AlgorithmSettings:
        """The section of the algorithm in use."""
        return self.settings[self.algorithm]

    @property
    def settings(self) -> dict[AlgorithmName, AlgorithmSettings]:
        return {name: getattr(self, name) for name in get_args(AlgorithmName)}

    def check(self, others: OtherSections) -> None:
        """Raise ``ValueError`` for what the algorithm in use cannot use, here or in the other sections."""
        active, rollout = self.active, others.rollout
        if self.entropy_bonus > 0 and not active.rewards_tokens:
            raise ValueError(
                f"generator.algorithm={self.algorithm} learns from no reward of single tokens: leave out "
                "generator.entropy_bonus"
            )
        active.check(others)
        if (rollout.top_p < 1.0 or rollout.top_k > 0) and not active.samples_again:
            key = f"top_p={rollout.top_p:g}" if rollout.top_p < 1.0 else f"top_k={rollout.top_k}"
            raise ValueError(
                f"rollout.{key} samples from a truncated distribution, and generator.algorithm={self.algorithm} learns "
                "from log-probs of the full one: set rollout.top_p=1 and rollout.top_k=0, and lower "
                "rollout.temperature for likelier tokens"
            )
        if others.schedule.mode == "async" and active.sync_only is not None:
            possible = " or ".join(name for name, each in self.settings.items() if each.sync_only is None)
            raise ValueError(
                f"generator.algorithm={self.algorithm} {active.sync_only}: set schedule.mode=sync, "
                f"or generator.algorithm={possible}"
            )
