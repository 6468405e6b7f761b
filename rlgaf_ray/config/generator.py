"""The generator: its algorithms with their settings and rules, and its optimiser.

To add an algorithm, write its section here and add a field of its name to ``GeneratorSection`` (docs/algorithms.md).
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
        if reward.discriminator_weight == 0:  # no token credit: functions reward full responses
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
                f"generator.reinforce.credit=token needs a reward that is a sum over tokens: set {setting}, or "
                "generator.reinforce.credit=sequence"
            )
        if discriminator.view == "last_tokens" and others.stop_at_end_of_text:
            raise ValueError(
                "generator.reinforce.credit=token with discriminator.view=last_tokens needs responses of equal length: "
                "set rollout.stop_at_end_of_text=false, or generator.reinforce.credit=sequence"
            )


class SeqGANSettings(PolicyGradientSettings):
    """REINFORCE with Monte-Carlo action values as returns (SeqGAN)."""

    key = "seqgan"
    searches = True
    sync_only = "searches with the engines that asynchronous rollouts would occupy"

    num_completions: Positive = Field(16, description="Monte-Carlo completions per prefix")
    stride: Positive = Field(1, description="complete every k-th prefix only; the k tokens share its value")
    rollout_policy_rate: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0, description="decay of the policy's moving average that completes prefixes (SeqGAN: 0.8); 0: the policy"
    )

    @model_validator(mode="after")
    def _values_are_of_tokens(self) -> SeqGANSettings:
        if self.credit == "token":
            raise ValueError(
                "generator.seqgan.credit=token does not apply, since action values are per token already: set "
                "generator.seqgan.credit=sequence"
            )
        if not self.reward_to_go:
            raise ValueError(
                "generator.seqgan.reward_to_go=false would ignore the action values of tokens: set "
                "generator.seqgan.reward_to_go=true"
            )
        return self

    @property
    def rollout_average(self) -> float:
        return self.rollout_policy_rate

    def completed_prefixes(self, num_tokens: int) -> list[int]:
        return [*range(self.stride, num_tokens, self.stride)] * self.num_completions


class PPOSettings(AlgorithmSettings):
    """PPO with a learned critic."""

    key = "ppo"
    trains_critic = True

    epochs: Positive = 2
    minibatches: Positive = 2
    clip_range: Rate = Field(0.2, description="clip range of the probability ratio")
    clip_range_high: Rate | None = Field(None, description="upper clip range (clip-higher); null: clip_range")
    value_clip_range: Rate = 0.2
    value_coefficient: NonNegativeRate = 0.5
    value_learning_rate: Rate = 1e-4
    value_learning_rate_schedule: LearningRateSchedule = Field(
        "constant", description="schedule of the critic over run.iterations; linear, cosine: decay to 0"
    )
    discount: Fraction = 1.0
    gae_lambda: Fraction = 0.95
    whiten_rewards: bool = Field(True, description="whiten rewards with running statistics over iterations")
    whiten_advantages: bool = True
    critic_warmup_iterations: NonNegative = Field(5, description="iterations in which only the critic is trained")
    pretraining_coefficient: NonNegativeRate = Field(
        0.0, description="gamma of InstructGPT's PPO-ptx, weight of the NLL per token (paper: per text); 0: off"
    )
    ratio: RatioLevel = Field(
        "token",
        description="token: one ratio per token; sequence: one length-normalised ratio per response, with advantages "
        "still per token (for GSPO itself see configs/recipes/gspo.yaml)",
    )
    loss_average: LossAverage = Field("token", description=LOSS_AVERAGE)
    kl: KLSettings = KLSettings()

    @model_validator(mode="after")
    def _kl_in_reward(self) -> PPOSettings:
        if self.kl.placement != "reward":
            raise ValueError(
                "generator.ppo.kl.placement=loss is not supported, since InstructGPT's objective subtracts the KL from "
                "the reward: set generator.ppo.kl.placement=reward"
            )
        if self.kl.exact:
            raise ValueError(
                "generator.ppo.kl.estimator=exact is not supported, since PPO's KL is in the reward: set it to k1, k2 "
                "or k3"
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
                "generator.ppo.whiten_rewards=true and reward.whiten=true would whiten rewards twice: set one of them "
                "to false"
            )
        self.check_minibatches(self.minibatches, others.rollout)
        super().check(others)


class GumbelSettings(AlgorithmSettings):
    """Gumbel-softmax: the discriminator's gradient through soft tokens."""

    key = "gumbel"
    needs_discriminator = True
    rewards_tokens = False
    sync_only = "learns from samples of the current policy"

    mode: Literal["autoregressive", "conditional"] = Field(
        "autoregressive",
        description="autoregressive: the learner samples responses, feeding each soft token to the next step; "
        "conditional: relaxes the rollouts' tokens in one pass, without gradients through later tokens",
    )
    temperature_start: Rate = Field(1.0, description="temperature of the relaxation at the first iteration")
    temperature_end: Rate = Field(0.5, description="temperature at the last iteration; geometric in between")
    kl: GumbelKLSettings = GumbelKLSettings()

    @property
    def samples_again(self) -> bool:
        return self.mode == "autoregressive"

    def check(self, others: OtherSections) -> None:
        discriminator = others.discriminator
        if not discriminator.traits.scalar_head:
            raise ValueError(
                "generator.algorithm=gumbel needs a discriminator that accepts soft tokens: set "
                "discriminator.architecture=generator"
            )
        self.check_without_rewards(others, "learns from the discriminator's gradient")
        if others.learner.num_workers > 1:
            raise ValueError(
                f"generator.algorithm=gumbel trains in a single process, but learner.num_workers="
                f"{others.learner.num_workers}: set learner.num_workers=1"
            )
        if others.learner.activation_checkpointing and self.samples_again:
            raise ValueError(
                "generator.gumbel.mode=autoregressive keeps keys and values of a block, which "
                "learner.activation_checkpointing=true computes twice: set one of them to conditional or false"
            )
        if discriminator.match_lengths:
            raise ValueError(
                "generator.algorithm=gumbel scores responses with their end of text, which "
                "discriminator.match_lengths=true removes: set discriminator.match_lengths=false"
            )
        if discriminator.view != "response":
            raise ValueError(
                f"generator.algorithm=gumbel scores full responses, but discriminator.view={discriminator.view} reads "
                "only a part: set discriminator.view=response"
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
    learning_rate_warmup: NonNegative = Field(0, description="iterations of linear learning-rate warm-up")
    betas: Pair = (0.9, 0.95)
    weight_decay: NonNegativeRate = 0.0
    max_grad_norm: Rate = 1.0
    entropy_bonus: NonNegativeRate = Field(
        0.0, description="coefficient of -log pi, added to the reward of each sampled token; 0: off"
    )
    average_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.985,
        description="decay per optimiser step of the moving average of the weights that is evaluated and exported; 0: "
        "off",
    )
    importance_weight_cap: Rate | None = Field(
        None, description="cap of importance weights between learner and rollout log-probs; null: off, async: 2.0"
    )
    importance_weight_mode: Literal["cap", "mask", "none"] = Field(
        "cap", description="cap: truncate weights at the cap; mask: drop tokens above it; none: no importance weights"
    )

    @model_validator(mode="after")
    def _mask_keeps_unchanged_tokens(self) -> GeneratorSection:
        cap = self.importance_weight_cap
        if self.importance_weight_mode == "mask" and cap is not None and cap < 1:
            raise ValueError(
                f"generator.importance_weight_cap={cap:g} with generator.importance_weight_mode=mask would drop every "
                "on-policy token, whose weight is 1: set the cap to 1 or more"
            )
        return self

    @property
    def active(self) -> AlgorithmSettings:
        """Section of the configured algorithm."""
        return self.settings[self.algorithm]

    @property
    def settings(self) -> dict[AlgorithmName, AlgorithmSettings]:
        return {name: getattr(self, name) for name in get_args(AlgorithmName)}

    def check(self, others: OtherSections) -> None:
        """Raise ``ValueError`` if the configured algorithm is incompatible with this or other sections."""
        active, rollout = self.active, others.rollout
        if self.entropy_bonus > 0 and not active.rewards_tokens:
            raise ValueError(
                f"generator.algorithm={self.algorithm} does not use per-token rewards: remove generator.entropy_bonus"
            )
        active.check(others)
        if (rollout.top_p < 1.0 or rollout.top_k > 0) and not active.samples_again:
            key = f"top_p={rollout.top_p:g}" if rollout.top_p < 1.0 else f"top_k={rollout.top_k}"
            raise ValueError(
                f"rollout.{key} samples from a truncated distribution, but generator.algorithm={self.algorithm} uses "
                "log-probs of the full one: set rollout.top_p=1 and rollout.top_k=0 (to sharpen sampling, lower "
                "rollout.temperature)"
            )
        if others.schedule.mode == "async" and active.sync_only is not None:
            possible = " or ".join(name for name, each in self.settings.items() if each.sync_only is None)
            raise ValueError(
                f"generator.algorithm={self.algorithm} {active.sync_only}: set schedule.mode=sync, "
                f"or generator.algorithm={possible}"
            )
