"""The table of methods for ``rlgaf compare``: their changes to the config, and how they select answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlgaf_ray.config import Config
from rlgaf_ray.config.compare import BuiltInMethod
from rlgaf_ray.errors import UserError

Keys = Mapping[str, Any]
REJECTION_EPOCHS = 2
SELF_PLAY_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Answering:
    """Samples ``candidates`` per answer and selects one by the discriminator's score.

    With ``reward.base_logprob`` the base model's log-likelihood at temperature 1, times that coefficient, is added.
    """

    candidates: int = 1
    by: Literal["best", "weight"] = "best"  # highest score, or sampled in proportion to exp(score)
    guided: bool = False  # the SFT model is trained with label tokens, and sampling is guided by them


@dataclass(frozen=True, slots=True)
class Method:
    """A row of ``METHODS``.

    ``keys``: overrides of the config. ``trains``: what is trained after the supervised warm-ups.
    """

    title: str
    source: str
    keys: Callable[[Config], Keys] = lambda config: {}
    trains: Literal["nothing", "discriminator", "generator"] = "generator"
    answering: Answering = Answering()
    scorer: Literal["discriminator", "verdict", "posterior"] = "discriminator"  # what scores the answers

    @property
    def scores(self) -> bool:
        """Whether a trial continues after the supervised warm-ups."""
        return self.trains != "nothing"

    def sft_steps(self, config: Config) -> Sequence[int | Literal["auto"]]:
        """Return the SFT step counts that a trial tries, ascending, so that each continues from the one before."""
        several = [] if self.scores else sorted(config.compare.sft_steps)
        return several or [config.warmup.sft.steps]

    def options(self, config: Config) -> list[Keys]:
        """Return the overrides that a trial tries, to keep the one with the best validation quality."""
        weights = config.compare.guidance if self.answering.guided else config.compare.guidance[:1]
        return [
            {"warmup.sft.steps": steps, "compare.guidance": [weight]}
            for steps in self.sft_steps(config)
            for weight in weights
        ]


PER_RESPONSE: Keys = {"generator.reinforce.credit": "sequence", "generator.reinforce.baseline": "leave_one_out"}
"""Overrides for a reward of the full response."""


def _without_discriminator(config: Config) -> dict[str, Any]:
    """Overrides that disable the training of a discriminator whose scores are not used."""
    return {
        "warmup.discriminator.steps": 0,
        "discriminator.updates_per_generator_update": 0.0,
        "discriminator.overfit_gap": None,
        "guard.action": "warn",
    }


def loop_rollouts(config: Config) -> int:
    """Return the rollouts of all iterations, without the discriminator's warm-up."""
    return config.run.iterations * config.rollout.batch_size


def _rejection(config: Config) -> Keys:
    """RAFT with the rollouts of the config's own method, in a few large rounds."""
    group = max(2, config.rollout.samples_per_prompt)
    rounds = config.compare.rejection_rounds
    batch = max(1, loop_rollouts(config) // rounds // group) * group
    steps = max(1, batch // group // 32)  # about 32 selected samples per step
    return {
        "generator.algorithm": "raft",
        "reward.base_logprob": 0.0,
        "generator.raft.epochs": REJECTION_EPOCHS,
        "generator.raft.minibatches": steps,
        "generator.raft.demonstration_coefficient": 0.1,
        "run.iterations": rounds,
        "rollout.batch_size": batch,
        "rollout.samples_per_prompt": group,
        "warmup.discriminator.rollouts": config.discriminator_warmup_rollouts,
        "discriminator.updates_per_generator_update": max(1.0, config.discriminator.updates_per_generator_update),
        "generator.learning_rate_schedule": "constant",
    }


def _dpo(config: Config) -> dict[str, Any]:
    return {
        **_without_discriminator(config),
        "generator.algorithm": "dpo",
        "rollout.free_prompts": 0.0,
        "reward.base_logprob": 0.0,
    }


def _dpo_labels(config: Config) -> Keys:
    shares = {"generator.dpo.replay_share": 0.0, "generator.dpo.between_share": 0.0}
    return {**_dpo(config), **shares, "generator.dpo.rejected": "labels"}


def _label_token(config: Config) -> Keys:
    if config.warmup.sft.steps == 0 and not config.compare.sft_steps:
        raise UserError("it fine-tunes with a label token, but warmup.sft.steps=0: set it to a number or auto")
    return {"warmup.sft.contrastive_weight": 0.0}


def _spin(config: Config) -> Keys:
    batch = max(1, loop_rollouts(config) // SELF_PLAY_ROUNDS // config.rollout.samples_per_prompt)
    batch *= config.rollout.samples_per_prompt
    return {
        **_dpo(config),
        "generator.dpo.self_play": True,
        "generator.dpo.minibatches": max(1, batch // config.rollout.batch_size),
        "run.iterations": SELF_PLAY_ROUNDS,
        "rollout.batch_size": batch,
        "generator.learning_rate_schedule": "constant",
    }


def _gad(config: Config) -> Keys:
    """GAD's discriminator loss and GRPO, with the config's sizes and learning rates."""
    reinforce = {
        "credit": "sequence",
        "baseline": "group_mean",
        "advantage_scale": "group",
        "clip_range": 0.2,
        "loss_average": "token",
        "demonstration_coefficient": 0.0,
    }
    return {
        "generator.algorithm": "reinforce",
        **{f"generator.reinforce.{key}": value for key, value in reinforce.items()},
        "discriminator.loss": "bradley_terry",
        "discriminator.contrast_weight": 0.0,
        "discriminator.updates_per_generator_update": 1.0,
    }


def _posterior(config: Config) -> Keys:
    """The posterior as the only reward."""
    if config.generator.active.needs_discriminator:
        raise UserError("it has no weights to back-propagate through: set another generator.algorithm, or remove it")
    alone = {"reward.kind": "log_probability", "reward.discriminator_weight": 1.0, "reward.base_logprob": 0.0}
    return {**_without_discriminator(config), **alone, **PER_RESPONSE}


def _hindsight(config: Config) -> Keys:
    """Label each base walk with its last square; only the bridge has such labels."""
    if not hasattr(config.task.settings, "base_goals"):
        raise UserError("it relabels walks by their last square: set task.name=bridge, or remove it")
    return {f"task.{config.task.name}.base_goals": "last"}


METHODS: Mapping[BuiltInMethod, Method] = {
    "base": Method(
        "the model before SFT",
        "",
        lambda config: {"warmup.sft.steps": 0, "compare.sft_steps": []},
        trains="nothing",
    ),
    "sft": Method("SFT", "", lambda config: {"warmup.sft.contrastive_weight": 0.0}, trains="nothing"),
    "contrastive_sft": Method(
        "SFT with the contrastive term",
        "InfoNCE on the policy's own likelihoods (arXiv 1807.03748)",
        lambda config: {"warmup.sft.contrastive_weight": config.warmup.sft.contrastive_weight or 3.0},
        trains="nothing",
    ),
    "best_of_4": Method("best of 4 by D", "", trains="discriminator", answering=Answering(4)),
    "best_of_16": Method("best of 16 by D", "", trains="discriminator", answering=Answering(16)),
    "resampling_4": Method(
        "one of 4 by exp(D)", "arXiv 1810.06758", trains="discriminator", answering=Answering(4, "weight")
    ),
    "resampling_16": Method(
        "one of 16 by exp(D)", "arXiv 1810.06758", trains="discriminator", answering=Answering(16, "weight")
    ),
    "rejection": Method("rejection fine-tuning", "RAFT (arXiv 2304.06767)", _rejection),
    "dpo": Method("DPO over own samples", "arXiv 2305.18290", _dpo),
    "spin": Method("SPIN", "arXiv 2401.01335", _spin),
    "ditto": Method(
        "DITTO",
        "arXiv 2406.00888",
        lambda config: {**_dpo(config), "generator.dpo.replay_share": 0.2, "generator.dpo.between_share": 0.1},
    ),
    "dpo_labels": Method(
        "DPO over labelled negatives",
        "arXiv 2305.18290",
        _dpo_labels,
    ),
    "label_token": Method(
        "SFT with a label token, guided",
        "arXiv 1909.05858, 2306.17806",
        _label_token,
        trains="nothing",
        answering=Answering(guided=True),
    ),
    "gad": Method("GAD", "arXiv 2511.10643", _gad),
    "frozen": Method(
        "frozen D",
        "",
        lambda config: {"discriminator.updates_per_generator_update": 0.0, "discriminator.overfit_gap": None},
    ),
    "reward_model": Method(
        "reward model on labels, frozen",
        "RLHF (arXiv 2203.02155), with a classifier of labelled answers",
        lambda config: {
            "warmup.discriminator.type": "labels",
            "discriminator.contrast_weight": 0.0,
            "discriminator.updates_per_generator_update": 0.0,
            "discriminator.overfit_gap": None,
        },
    ),
    "zero_reward": Method(
        "zero reward",
        "",
        lambda config: {**_without_discriminator(config), "reward.kind": "zero", "reward.base_logprob": 0.0},
    ),
    "rlgaf": Method("RLGAF", "arXiv 2305.06176"),
    "posterior": Method(
        "SFT's posterior as the reward",
        "no D; log p(prompt | answer), InfoNCE (arXiv 1807.03748)",
        _posterior,
        scorer="posterior",
    ),
    "best_of_16_posterior": Method(
        "best of 16 by SFT's posterior",
        "no D",
        _posterior,
        trains="discriminator",
        answering=Answering(16),
        scorer="posterior",
    ),
    "verdict": Method(
        "true verdict as the reward",
        "the ceiling",
        lambda config: {
            **_without_discriminator(config),
            "reward.discriminator_weight": 0.0,
            "reward.base_logprob": 0.0,
            **PER_RESPONSE,
        },
        scorer="verdict",
    ),
    "hindsight": Method(
        "SFT, base walks relabelled", "hindsight relabelling (arXiv 1707.01495)", _hindsight, trains="nothing"
    ),
}
