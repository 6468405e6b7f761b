"""What an algorithm needs of the other sections: the reward, batch and group sizes, sampling, the schedule."""

from __future__ import annotations

from rlgaf_ray.config.discriminator import DiscriminatorSection
from rlgaf_ray.config.generator import GeneratorSection
from rlgaf_ray.config.learner import LearnerSection
from rlgaf_ray.config.reward import COMBINATIONS, REWARD_KINDS, RewardSection
from rlgaf_ray.config.rollout import RolloutSection, ScheduleSection

MAX_SAMPLES_PER_HORIZON = 5  # of the adaptive KL: at more its coefficient could turn negative


def check_algorithm(
    generator: GeneratorSection, reward: RewardSection, discriminator: DiscriminatorSection, learner: LearnerSection
) -> None:
    """Raise ``ValueError`` for a reward, a discriminator or a learner that the algorithm cannot use."""
    match generator.algorithm:
        case "gumbel":
            _check_gumbel(generator, reward, discriminator, learner)
        case "ppo" if generator.ppo.whiten_rewards and reward.whiten:
            raise ValueError(
                "generator.ppo.whiten_rewards whitens already: set it to false, or leave out reward.whiten"
            )
        case "reinforce" if generator.reinforce.credit == "token":
            _check_token_credit(reward, discriminator)


def _check_gumbel(
    generator: GeneratorSection, reward: RewardSection, discriminator: DiscriminatorSection, learner: LearnerSection
) -> None:
    if not discriminator.traits.scalar_head:
        raise ValueError(
            "generator.algorithm=gumbel needs a discriminator that reads soft tokens: "
            "set discriminator.architecture=generator"
        )
    if any(function.weight for function in reward.functions):
        raise ValueError(
            "generator.algorithm=gumbel learns from the discriminator's gradient, and reward.functions have none: give "
            "them the weight 0 to log them, or take another algorithm"
        )
    unused = {
        "reward.discriminator_weight": reward.discriminator_weight != 1,
        "reward.whiten": reward.whiten,
        "reward.clip": reward.clip is not None,
        "reward.base_logprob": reward.base_logprob > 0,
        "generator.entropy_bonus": generator.entropy_bonus > 0,
    }
    for key in (key for key, used in unused.items() if used):
        raise ValueError(f"generator.algorithm=gumbel learns from no sampled reward: leave out {key}")
    if learner.num_workers > 1:
        raise ValueError(
            "generator.algorithm=gumbel trains in one process, which holds the discriminator too: "
            "set learner.num_workers=1"
        )
    if discriminator.match_lengths:
        raise ValueError(
            "generator.algorithm=gumbel reads responses with their end, which discriminator.match_lengths hides "
            "from the discriminator: leave it out"
        )


def _check_token_credit(reward: RewardSection, discriminator: DiscriminatorSection) -> None:
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
    for key in (key for key, met in needed.items() if not met):
        raise ValueError(
            f"generator.reinforce.credit=token needs a reward that is a sum over tokens: set {key}, "
            "or generator.reinforce.credit=sequence"
        )


def check_batches(generator: GeneratorSection, rollout: RolloutSection) -> None:
    """Raise ``ValueError`` for batches and groups too small for the estimator that reads them."""
    algorithm = generator.algorithm
    name = f"generator.{algorithm}"
    settings = getattr(generator, algorithm)
    if algorithm in ("reinforce", "seqgan"):
        of_groups = {
            f"baseline={settings.baseline}": settings.baseline in ("leave_one_out", "group_mean"),
            "advantage_scale=group": settings.advantage_scale == "group",
        }
        for key in (key for key, used in of_groups.items() if used and rollout.samples_per_prompt < 2):
            raise ValueError(
                f"{name}.{key} compares the samples of one prompt, and rollout.samples_per_prompt=1: set it to 2 or "
                f"more, or change {name}.{key.partition('=')[0]}"
            )
        of_batches = {
            f"baseline={settings.baseline}": settings.baseline in ("position_mean", "batch_mean"),
            "advantage_scale=batch": settings.advantage_scale == "batch",
        }
        for key in (key for key, used in of_batches.items() if used and rollout.batch_size < 2):
            raise ValueError(
                f"{name}.{key} compares the rollouts of a batch, and rollout.batch_size=1: set it to 2 or more, or "
                f"{name}.{key.partition('=')[0]}=none"
            )
    if algorithm != "gumbel" and settings.minibatches > rollout.batch_size:
        raise ValueError(
            f"{name}.minibatches={settings.minibatches} is more than rollout.batch_size={rollout.batch_size}: some "
            "would have no rollout to learn from"
        )
    kl = settings.kl
    if kl.target is not None and rollout.batch_size >= MAX_SAMPLES_PER_HORIZON * kl.horizon:
        raise ValueError(
            f"{name}.kl.horizon={kl.horizon} must be above rollout.batch_size / {MAX_SAMPLES_PER_HORIZON} = "
            f"{rollout.batch_size / MAX_SAMPLES_PER_HORIZON:g}: the adaptive coefficient could turn negative"
        )


def check_sampling(generator: GeneratorSection, rollout: RolloutSection) -> None:
    """Raise ``ValueError`` for rollouts of another distribution than the one that the learner differentiates."""
    if rollout.top_p == 1.0 and rollout.top_k == 0:
        return
    if generator.algorithm == "gumbel" and generator.gumbel.mode == "autoregressive":
        return  # the learner samples by itself
    key = f"top_p={rollout.top_p:g}" if rollout.top_p < 1.0 else f"top_k={rollout.top_k}"
    raise ValueError(
        f"rollout.{key} samples from a truncated distribution, and generator.algorithm={generator.algorithm} learns "
        "from log-probs of the full one: set rollout.top_p=1 and rollout.top_k=0, and lower rollout.temperature for "
        "likelier tokens"
    )


def check_schedule(generator: GeneratorSection, schedule: ScheduleSection) -> None:
    """Raise ``ValueError`` for an algorithm that needs the newest policy's rollouts, or its engines, at each update."""
    if schedule.mode == "sync":
        return
    reasons = {
        "seqgan": "searches with the engines that would make the next rollouts meanwhile",
        "gumbel": "learns from the newest policy's own samples",
    }
    if reason := reasons.get(generator.algorithm):
        raise ValueError(
            f"generator.algorithm={generator.algorithm} {reason}: set schedule.mode=sync, "
            "or generator.algorithm=reinforce or ppo"
        )
