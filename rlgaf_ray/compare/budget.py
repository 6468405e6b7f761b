"""Cost of one trial of a method, computed from its config: rollouts, updates and forward passes per answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from rlgaf_ray.compare.configs import method_of
from rlgaf_ray.compare.methods import Method, loop_rollouts
from rlgaf_ray.config import Config
from rlgaf_ray.config.compare import MethodName

PROMPTS_AT_ONCE = 64  # prompts per batch when a method is measured; bounds the KV cache


@dataclass(frozen=True, slots=True)
class Budget:
    rollouts: int  # sampled for training, including the discriminator's warm-up
    generator_steps: int  # optimiser steps after the base model: SFT and training
    discriminator_updates: int  # warm-up and training
    candidates: int  # sampled per answer
    passes: int  # forward passes for the longest answer: one per sampled token (two if guided), plus those that score


def budget(config: Config, name: MethodName) -> Budget:
    """Count the cost of a method. ``config``: the method's own. SFT with ``steps=auto`` counts as its ``max_steps``."""
    method = method_of(config, name)
    candidates = method.answering.candidates
    return Budget(
        rollouts=num_rollouts(config, method),
        generator_steps=sum(sft_steps(config, name).values())
        + (loop_steps(config) if method.trains == "generator" else 0),
        discriminator_updates=_discriminator_updates(config, method),
        candidates=candidates,
        passes=candidates * passes_per_candidate(config, name),
    )


def scoring_passes(config: Config, name: MethodName) -> int:
    """Return the forward passes that score one answer; at most, if the task has few other prompts."""
    return 1 + (posterior_prompts(config) if method_of(config, name).scorer == "posterior" else 0)


def posterior_prompts(config: Config) -> int:
    """Return the number of other prompts among which ``posterior`` recognises a response's own."""
    return config.compare.posterior_prompts or config.warmup.sft.contrastive_prompts


def selection_passes(config: Config, name: MethodName) -> int:
    """Return the forward passes that score one of several candidates: also the base model's with its log-prob."""
    return scoring_passes(config, name) + (config.reward.base_logprob > 0)


def passes_per_candidate(config: Config, name: MethodName) -> int:
    """Return the forward passes for one candidate of the longest answer: sampling, and scoring if one is selected."""
    method = method_of(config, name)
    sampling = config.task.response_tokens * (2 if method.answering.guided else 1)
    if method.answering.candidates == 1:
        return sampling
    return sampling + selection_passes(config, name)


def num_rollouts(config: Config, method: Method) -> int:
    """Return the number of training rollouts, including the discriminator's warm-up."""
    warmup = config.discriminator_warmup_updates * config.discriminator_warmup_rollouts if method.scores else 0
    return warmup + (loop_rollouts(config) if method.trains == "generator" else 0)


def sft_steps(config: Config, name: MethodName) -> dict[int | Literal["auto"], int]:
    """Return the SFT steps that each count of the method costs: a larger one continues from the next smaller one.

    ``auto`` counts as its maximum.
    """
    counts = method_of(config, name).sft_steps(config)
    numbers = [config.warmup.sft.max_steps if each == "auto" else each for each in counts]
    return dict(zip(counts, np.diff(numbers, prepend=0).tolist(), strict=True))


def loop_steps(config: Config) -> int:
    """Return the optimiser steps of all iterations: one each, times the algorithm's epochs and minibatches."""
    settings = config.generator.active
    return config.run.iterations * getattr(settings, "epochs", 1) * getattr(settings, "minibatches", 1)


def _discriminator_updates(config: Config, method: Method) -> int:
    """Return the updates of warm-up and training. An adaptive update ratio counts as its initial value."""
    settings = config.warmup.discriminator
    warmup = settings.steps if method.scores or settings.type == "labels" else 0
    if method.trains != "generator":
        return warmup
    return warmup + int(config.run.iterations * config.discriminator.updates_per_generator_update + 1e-9)
