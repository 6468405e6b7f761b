"""What every algorithm's section has: its KL, what the rest of the package asks of it, and the rules that all share."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from pydantic import Field, model_validator

from rlgaf_ray.config.discriminator import DiscriminatorSection
from rlgaf_ray.config.learner import LearnerSection
from rlgaf_ray.config.reward import RewardSection
from rlgaf_ray.config.rollout import RolloutSection, ScheduleSection
from rlgaf_ray.config.section import NonNegativeRate, Positive, Rate, Section

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
RatioLevel = Literal["token", "sequence"]
Text = Literal["pretraining", "demonstrations", "answers"]
"""``answers``: the demonstration of each rollout's prompt; the others are drawn from a separate stream."""

MAX_SAMPLES_PER_HORIZON = 5  # of the adaptive KL: at more its coefficient could turn negative


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

    @property
    def exact(self) -> bool:
        """Whether it is over the whole vocabulary, which takes memory."""
        return self.estimator == "exact"


class ExactKLSettings(KLSettings):
    """Defaults of a KL penalty over the full vocabulary, as a term of the loss."""

    coefficient: NonNegativeRate = 2.0
    estimator: KLChoice = "exact"
    placement: Placement = "loss"


class GumbelKLSettings(Section):
    """KL(policy, reference) over the whole vocabulary at every response position: a term of the loss."""

    reference: KLReference = Field("sft", description=KL_REFERENCE)
    coefficient: NonNegativeRate = Field(
        0.7,
        description="the discriminator's own gradient is strong: at 0.05 perplexity rose eightfold in 20 iterations",
    )
    target: Rate | None = Field(None, description="adaptive coefficient: hold KL per token near this value")
    horizon: Positive = Field(10_000, description="adaptive coefficient: samples over which it moves")
    exact: ClassVar[bool] = True


class PreferenceKLSettings(Section):
    """DPO's beta, the coefficient of the KL that its loss holds implicitly."""

    reference: KLReference = Field("sft", description=KL_REFERENCE)
    coefficient: Rate = Field(0.1, description="beta: how much of a change in likelihood makes a preference")
    target: ClassVar[None] = None
    horizon: ClassVar[int] = 10_000
    exact: ClassVar[bool] = False


class OtherSections(Protocol):
    """What the rules of algorithms read; ``Config`` has all of it."""

    @property
    def rollout(self) -> RolloutSection: ...
    @property
    def discriminator(self) -> DiscriminatorSection: ...
    @property
    def reward(self) -> RewardSection: ...
    @property
    def learner(self) -> LearnerSection: ...
    @property
    def schedule(self) -> ScheduleSection: ...
    @property
    def stop_at_end_of_text(self) -> bool: ...


class AlgorithmSettings(Section):
    """The section of one algorithm. The package asks for these traits instead of its name.

    Attributes:
        key: its name in ``generator``.
        needs_discriminator: the learner holds a copy of the discriminator, refreshed after each of its updates.
        searches: the driver completes prefixes of the rollouts and gives their tokens action values.
        rewards_tokens: sampled tokens have rewards, such as the entropy bonus.
        trains_critic: trains a value network beside the policy.
        sync_only: why it cannot learn from rollouts of an older policy; None: it can.
    """

    key: ClassVar[str]
    needs_discriminator: ClassVar[bool] = False
    searches: ClassVar[bool] = False
    rewards_tokens: ClassVar[bool] = True
    trains_critic: ClassVar[bool] = False
    sync_only: ClassVar[str | None] = None

    if TYPE_CHECKING:  # each section declares it, as the last of its keys
        kl: KLSettings | GumbelKLSettings | PreferenceKLSettings

    @property
    def text(self) -> Text | None:
        """Real text that each update learns from beside the rollouts."""
        return None

    @property
    def passes(self) -> int:
        """How often an update trains on each rollout."""
        return 1

    @property
    def samples_again(self) -> bool:
        """The learner samples responses of its own, and reads only the prompts of the rollouts."""
        return False

    @property
    def rollout_average(self) -> float:
        """Rate of the moving average of the policy that the search completes with; 0: the policy itself."""
        return 0.0

    def check(self, others: OtherSections) -> None:
        """Raise ``ValueError`` for what the algorithm cannot use of the other sections."""
        batch_size, horizon = others.rollout.batch_size, self.kl.horizon
        if self.kl.target is not None and batch_size >= MAX_SAMPLES_PER_HORIZON * horizon:
            raise ValueError(
                f"generator.{self.key}.kl.horizon={horizon} must be above rollout.batch_size / "
                f"{MAX_SAMPLES_PER_HORIZON} = {batch_size / MAX_SAMPLES_PER_HORIZON:g}: the adaptive coefficient could "
                "turn negative"
            )

    def check_without_rewards(self, others: OtherSections, why: str) -> None:
        """Raise ``ValueError`` for rewards that nothing would learn from; ``why``: the algorithm's own way."""
        if any(function.weight for function in others.reward.functions):
            raise ValueError(
                f"generator.algorithm={self.key} {why}, and would ignore reward.functions: give them the weight 0 to "
                "log them, or take another algorithm"
            )
        reward = others.reward
        unused = {
            "reward.discriminator_weight": reward.discriminator_weight != 1,
            "reward.whiten": reward.whiten,
            "reward.clip": reward.clip is not None,
            "reward.base_logprob": reward.base_logprob > 0,
        }
        for setting in (each for each, used in unused.items() if used):
            raise ValueError(f"generator.algorithm={self.key} learns from no sampled reward: leave out {setting}")

    def check_minibatches(self, minibatches: int, rollout: RolloutSection) -> None:
        if minibatches > rollout.batch_size:
            raise ValueError(
                f"generator.{self.key}.minibatches={minibatches} is more than rollout.batch_size={rollout.batch_size}: "
                "some would have no rollout to learn from"
            )
