"""Base of the algorithms' sections: KL settings, traits and shared validation rules."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from pydantic import Field

from rlgaf_ray.config.discriminator import DiscriminatorSection
from rlgaf_ray.config.learner import LearnerSection
from rlgaf_ray.config.reward import RewardSection
from rlgaf_ray.config.rollout import RolloutSection, ScheduleSection
from rlgaf_ray.config.section import NonNegativeRate, Positive, Rate, Section

KLEstimator = Literal["k1", "k2", "k3", "exact"]
KLPlacement = Literal["reward", "loss"]
KLReference = Literal["sft", "base"]
KL_REFERENCE = (
    "sft: the SFT model that training starts from; base: the model before warmup.sft, which is then also the "
    "reference of generator/kl and guard.limits.kl"
)
LossAverage = Literal["token", "sequence", "sequence_sum", "constant"]
LOSS_AVERAGE = (
    "token: mean over all tokens of the batch; sequence: mean over responses of the mean over tokens; sequence_sum: "
    "mean over responses of the sum over tokens, the unbiased policy gradient; constant: sequence_sum / "
    "task.response_tokens (Dr. GRPO)"
)
RatioLevel = Literal["token", "sequence"]
Text = Literal["pretraining", "demonstrations", "answers", "pairs"]
"""Real text of an update. ``answers``: the demonstration of each rollout's prompt; ``pairs``: those, then a labelled
negative for each. The others have their own stream."""

MAX_SAMPLES_PER_HORIZON = 5  # with more samples per horizon the adaptive KL coefficient could become negative


class KLSettings(Section):
    """KL penalty towards the frozen reference, from log pi(a) - log pi_ref(a) at the sampled tokens."""

    reference: KLReference = Field("sft", description=KL_REFERENCE)
    coefficient: NonNegativeRate = 0.05
    estimator: KLEstimator = Field(
        "k1",
        description="k1, k2, k3: estimated at the sampled tokens; exact: over the full vocabulary, without sampling "
        "noise, with placement=loss only",
    )
    placement: KLPlacement = Field(
        "reward", description="reward: subtracted from each token's reward; loss: added to the loss"
    )
    target: Rate | None = Field(
        None, description="adapt the coefficient to hold the KL per token near this value; null: fixed coefficient"
    )
    horizon: Positive = Field(
        10_000, description="an adaptive coefficient changes by at most about 20 % per this many samples"
    )

    @property
    def exact(self) -> bool:
        """Whether the KL is over the full vocabulary, which takes more memory."""
        return self.estimator == "exact"


class ExactKLSettings(KLSettings):
    """Defaults of a KL penalty over the full vocabulary, as a term of the loss."""

    coefficient: NonNegativeRate = 2.0
    estimator: KLEstimator = "exact"
    placement: KLPlacement = "loss"


class GumbelKLSettings(Section):
    """KL(policy, reference) over the full vocabulary at every response position, added to the loss."""

    reference: KLReference = Field("sft", description=KL_REFERENCE)
    coefficient: NonNegativeRate = Field(
        0.7,
        description="weight of the KL; low values diverge: at 0.05 the perplexity rose eightfold in 20 iterations",
    )
    target: Rate | None = Field(
        None, description="adapt the coefficient to hold the KL per token near this value; null: fixed coefficient"
    )
    horizon: Positive = Field(
        10_000, description="an adaptive coefficient changes by at most about 20 % per this many samples"
    )
    exact: ClassVar[bool] = True


class PreferenceKLSettings(Section):
    """DPO's beta, the coefficient of the KL that is implicit in its loss."""

    reference: KLReference = Field("sft", description=KL_REFERENCE)
    coefficient: Rate = Field(0.1, description="beta of DPO; larger values keep the policy closer to the reference")
    target: ClassVar[None] = None
    horizon: ClassVar[int] = 10_000
    exact: ClassVar[bool] = False


class OtherSections(Protocol):
    """Sections that the algorithms' rules read; ``Config`` implements this."""

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
    """Section of one algorithm; the rest of the package reads these traits, never the algorithm's name.

    Attributes:
        key: name of the section in ``generator``.
        needs_discriminator: the learner holds a copy of the discriminator, refreshed after each discriminator update.
        searches: the driver completes prefixes of the rollouts to estimate action values of their tokens.
        rewards_tokens: learns from rewards of sampled tokens, such as the entropy bonus.
        trains_critic: trains a value network beside the policy.
        sync_only: reason why it cannot learn from stale rollouts, for the error message; None if it can.
    """

    key: ClassVar[str]
    needs_discriminator: ClassVar[bool] = False
    searches: ClassVar[bool] = False
    rewards_tokens: ClassVar[bool] = True
    trains_critic: ClassVar[bool] = False
    sync_only: ClassVar[str | None] = None

    if TYPE_CHECKING:  # every section declares its own, as its last key
        kl: KLSettings | GumbelKLSettings | PreferenceKLSettings

    @property
    def text(self) -> Text | None:
        """Source of the real text that each update reads besides the rollouts; None: no text."""
        return None

    @property
    def passes(self) -> int:
        """Number of passes of an update over each rollout."""
        return 1

    @property
    def samples_again(self) -> bool:
        """Whether the learner samples its own responses and reads only the prompts of the rollouts."""
        return False

    @property
    def rollout_average(self) -> float:
        """Decay of the policy's moving average that completes prefixes; 0: the policy itself completes them."""
        return 0.0

    def completed_prefixes(self, num_tokens: int) -> list[int]:
        """Length of the prefix of each completion of a response of ``num_tokens``; empty unless it ``searches``."""
        return []

    def check(self, others: OtherSections) -> None:
        """Raise ``ValueError`` if the algorithm is incompatible with the other sections."""
        batch_size, horizon = others.rollout.batch_size, self.kl.horizon
        if self.kl.target is not None and batch_size >= MAX_SAMPLES_PER_HORIZON * horizon:
            raise ValueError(
                f"generator.{self.key}.kl.horizon={horizon} must be above rollout.batch_size / "
                f"{MAX_SAMPLES_PER_HORIZON} = {batch_size / MAX_SAMPLES_PER_HORIZON:g}: the adaptive coefficient could "
                "become negative"
            )

    def check_without_rewards(self, others: OtherSections, why: str) -> None:
        """Raise ``ValueError`` for reward settings that this algorithm would ignore; ``why`` completes the message."""
        if any(function.weight for function in others.reward.functions):
            raise ValueError(
                f"generator.algorithm={self.key} {why} and would ignore reward.functions: set their weight to 0 to "
                "log them only, or use another algorithm"
            )
        reward = others.reward
        unused = {
            "reward.discriminator_weight": reward.discriminator_weight != 1,
            "reward.whiten": reward.whiten,
            "reward.clip": reward.clip is not None,
            "reward.base_logprob": reward.base_logprob > 0,
        }
        for setting in (each for each, used in unused.items() if used):
            raise ValueError(f"generator.algorithm={self.key} does not use sampled rewards: remove {setting}")

    def check_minibatches(self, minibatches: int, rollout: RolloutSection) -> None:
        if minibatches > rollout.batch_size:
            raise ValueError(
                f"generator.{self.key}.minibatches={minibatches} exceeds rollout.batch_size={rollout.batch_size}, and "
                f"some would be empty: set it to {rollout.batch_size} or less"
            )
