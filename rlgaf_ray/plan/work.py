"""Sizes of an iteration and of its passes, from a config."""

from __future__ import annotations

from dataclasses import replace

from rlgaf_ray.config.schema import Config
from rlgaf_ray.plan.shape import ModelShape
from rlgaf_ray.plan.speed import BACKWARD, Work


def work_of(config: Config, shape: ModelShape) -> Work:
    settings, needs = config.discriminator, config.discriminator.needs
    real = config.rollout.batch_size if needs.pairs else settings.batch_size
    backward = BACKWARD if config.model.lora.rank == 0 else BACKWARD - 1  # none into frozen weights
    return Work(
        rollouts=config.rollout.batch_size,
        prompt_tokens=config.task.prompt_tokens,
        response_tokens=config.task.response_tokens,
        demonstrations=real * (1 + needs.contrast + needs.other_prompts),
        discriminator_updates=config.discriminator.updates_per_generator_update,
        generator_passes=config.generator.active.passes,
        completions=config.rollout.batch_size * len(_prefixes(config)),
        generator_backward=backward,
        discriminator_backward=backward * trained_blocks(config, shape) / shape.layers,
    )


def _prefixes(config: Config) -> list[int]:
    """Return the length of the prefix of each Monte-Carlo completion of a response of full length."""
    return config.generator.active.completed_prefixes(config.task.response_tokens)


def completing(config: Config, work: Work) -> Work:
    """Return the sampling of the completions: prompts that end at the mean of the completed prefixes."""
    lengths = _prefixes(config)
    mean = sum(lengths) // len(lengths)
    return replace(
        work,
        rollouts=work.completions,
        prompt_tokens=work.prompt_tokens + mean,
        response_tokens=work.response_tokens - mean,
    )


def rows_per_pass(config: Config) -> int:
    """Return the sequences of a micro-batch; with a token budget as many of full length as it holds."""
    budget = config.learner.micro_batch_tokens
    if budget is None:
        return config.learner.micro_batch_size
    return max(1, budget // (config.task.prompt_tokens + config.task.response_tokens))


def trained_blocks(config: Config, shape: ModelShape) -> int:
    """Return how many blocks of the discriminator are trained."""
    return max(0, shape.layers - config.discriminator.num_frozen(shape.layers))
