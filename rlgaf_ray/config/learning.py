"""What an update learns from, across sections: the models it needs, batch and group sizes, sampling, warm-ups."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlgaf_ray.config.schema import Config

MAX_SAMPLES_PER_HORIZON = 5  # of the adaptive KL: at more its coefficient could turn negative


def needs_base_model(config: Config) -> bool:
    """Whether the learner holds the model before SFT beside the SFT model. Without an SFT stage the two are one."""
    used = config.generator.kl.reference == "base" or config.reward.base_logprob > 0
    return used and bool(config.warmup.sft.steps)


def check_batches(config: Config) -> None:
    """Raise ``ValueError`` for batches and groups too small for the estimator that reads them."""
    rollout, algorithm = config.rollout, config.generator.algorithm
    name = f"generator.{algorithm}"
    settings = getattr(config.generator, algorithm)
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


def check_view(config: Config) -> None:
    """Raise ``ValueError`` for a ``discriminator.view`` that its tokens or the generator's algorithm do not fit."""
    view, tokens = config.discriminator.view, config.discriminator.view_tokens
    if view == "last_tokens" and tokens is None:
        raise ValueError("discriminator.view=last_tokens needs their number: set discriminator.view_tokens")
    if view != "last_tokens" and tokens is not None:
        raise ValueError(
            f"discriminator.view_tokens={tokens} is read only with discriminator.view=last_tokens, not with "
            f"discriminator.view={view}: leave it out"
        )
    if tokens is not None and tokens > config.task.response_tokens:
        raise ValueError(
            f"discriminator.view_tokens={tokens} is more than task.response_tokens={config.task.response_tokens}: "
            "lower it, or set discriminator.view=response"
        )
    if view != "response" and config.generator.algorithm == "gumbel":
        raise ValueError(
            f"generator.algorithm=gumbel reads whole responses, of which discriminator.view={view} hides a part from "
            "the discriminator: set discriminator.view=response"
        )
    reinforce = config.generator.algorithm == "reinforce" and config.generator.reinforce.credit == "token"
    if view == "last_tokens" and reinforce and config.stop_at_end_of_text:
        raise ValueError(
            "generator.reinforce.credit=token credits tokens before it is known which are the last ones: with "
            "discriminator.view=last_tokens set generator.reinforce.credit=sequence, or "
            "rollout.stop_at_end_of_text=false, with which all responses have one length"
        )


def check_sampling(config: Config) -> None:
    """Raise ``ValueError`` for rollouts of another distribution than the one that the learner differentiates."""
    rollout, generator = config.rollout, config.generator
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


def check_warmups(config: Config) -> None:
    """Raise ``ValueError`` for a warm-up whose batch is smaller than its number of workers, or that teaches the
    discriminator what its control must not know."""
    warmup = config.warmup
    judge = warmup.discriminator
    if config.discriminator.labels == "shuffled" and judge.type == "labels" and judge.steps > 0:
        raise ValueError(
            "discriminator.labels=shuffled is to teach nothing but noise, and warmup.discriminator.type=labels teaches "
            "correct labels before: set warmup.discriminator.type=rollouts, or warmup.discriminator.steps=0"
        )
    for name in ("generator", "sft", "discriminator"):
        batch_size = getattr(warmup, name).batch_size
        if warmup.num_workers > batch_size:
            raise ValueError(
                f"warmup.num_workers={warmup.num_workers} is more than warmup.{name}.batch_size={batch_size}: some "
                "would have nothing to learn from"
            )
