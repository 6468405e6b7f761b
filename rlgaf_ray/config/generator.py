"""The generator's update: the algorithms, their distance to a frozen reference, the optimiser."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

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

KLChoice = Literal["k1", "k2", "k3", "exact"]
Placement = Literal["reward", "loss"]
KLReference = Literal["sft", "base"]
KL_REFERENCE = (
    "sft: the model that training starts from; base: the model before SFT on the demonstrations (warmup.sft), from "
    "which guard.limits.kl is then measured too"
)
LossAverage = Literal["token", "sequence", "sequence_sum", "constant"]
LOSS_AVERAGE = (
    "token: mean over all tokens; sequence: mean over responses of their tokens' mean; sequence_sum: of their tokens' "
    "sum, the unbiased policy gradient; constant: that sum / task.response_tokens (Dr. GRPO)"
)

DEMONSTRATION_COEFFICIENT = "of the demonstrations' negative log-likelihood, added to the loss; 0: off"


class KLSettings(Section):
    """Distance to the frozen reference, log pi(a) - log pi_ref(a) at the sampled tokens."""

    reference: KLReference = Field("sft", description=KL_REFERENCE)
    coefficient: NonNegativeRate = 0.05
    estimator: KLChoice = Field(
        "k1", description="from the sampled tokens; exact: over the whole vocabulary, without noise, as a loss only"
    )
    placement: Placement = Field("reward", description="taken from each token's reward, or a term of the loss")
    target: Rate | None = Field(None, description="adaptive coefficient: hold KL per token near this value")
    horizon: Positive = Field(10_000, description="adaptive coefficient: samples over which it moves")

    @model_validator(mode="after")
    def _gradient_of_the_loss(self) -> KLSettings:
        if self.placement == "loss" and self.estimator == "k1":
            raise ValueError(
                "kl.estimator=k1 has no useful gradient as a loss: take exact, k2 or k3, or kl.placement=reward"
            )
        if self.placement == "reward" and self.estimator == "exact":
            raise ValueError("kl.estimator=exact is a term of the loss: set kl.placement=loss")
        return self


Credit = Literal["sequence", "token"]
RatioLevel = Literal["token", "sequence"]
Baseline = Literal["none", "moving_average", "leave_one_out", "group_mean", "batch_mean", "position_mean"]


class PolicyGradientSettings(Section):
    """What REINFORCE and SeqGAN share."""

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


class ExactKLSettings(KLSettings):
    coefficient: NonNegativeRate = 2.0
    estimator: KLChoice = "exact"
    placement: Placement = "loss"


class ReinforceSettings(PolicyGradientSettings):
    credit: Credit = "token"
    baseline: Baseline = "position_mean"
    demonstration_coefficient: NonNegativeRate = Field(0.3, description=DEMONSTRATION_COEFFICIENT)
    kl: ExactKLSettings = ExactKLSettings()


class SeqGANSettings(PolicyGradientSettings):
    """REINFORCE whose returns are Monte-Carlo action values."""

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


class PPOSettings(Section):
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


class GumbelKLSettings(Section):
    """KL(policy, reference) over the whole vocabulary at every response position: a term of the loss."""

    reference: KLReference = Field("sft", description=KL_REFERENCE)
    coefficient: NonNegativeRate = Field(
        0.7,
        description="the discriminator's own gradient is strong: at 0.05 perplexity rose eightfold in 20 iterations",
    )
    target: Rate | None = Field(None, description="adaptive coefficient: hold KL per token near this value")
    horizon: Positive = Field(10_000, description="adaptive coefficient: samples over which it moves")


class GumbelSettings(Section):
    mode: Literal["autoregressive", "conditional"] = Field(
        "autoregressive",
        description="autoregressive: the learner samples, each soft token feeds the next; conditional: tokens of the "
        "rollouts in one pass, without the gradient through later tokens",
    )
    temperature_start: Rate = Field(1.0, description="of the relaxation, at the first iteration")
    temperature_end: Rate = Field(0.5, description="at the last one; geometric in between")
    kl: GumbelKLSettings = GumbelKLSettings()


class GeneratorSection(Section):
    algorithm: Literal["reinforce", "ppo", "seqgan", "gumbel"] = "reinforce"
    reinforce: ReinforceSettings = ReinforceSettings()
    seqgan: SeqGANSettings = SeqGANSettings()
    ppo: PPOSettings = PPOSettings()
    gumbel: GumbelSettings = GumbelSettings()
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
    def imitates(self) -> bool:
        """The demonstrations are learned directly as well, not only through the discriminator."""
        settings = {"reinforce": self.reinforce, "seqgan": self.seqgan}.get(self.algorithm)
        return settings is not None and settings.demonstration_coefficient > 0

    @property
    def kl(self) -> KLSettings | GumbelKLSettings:
        """That of the algorithm in use."""
        match self.algorithm:
            case "reinforce":
                return self.reinforce.kl
            case "seqgan":
                return self.seqgan.kl
            case "ppo":
                return self.ppo.kl
            case "gumbel":
                return self.gumbel.kl
