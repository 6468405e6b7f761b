"""Cost of one trial of a method, counted from its config: rollouts, updates, and the sampling of an answer."""

from __future__ import annotations

from dataclasses import dataclass

from rlgaf_ray.compare.methods import METHODS, Method, loop_rollouts
from rlgaf_ray.config import Config
from rlgaf_ray.config.compare import MethodName

PROMPTS_AT_ONCE = 64  # that are answered when a method is measured; bounds the engine's cache


@dataclass(frozen=True, slots=True)
class Budget:
    rollouts: int  # sampled for training, the discriminator's warm-up included
    generator_steps: int  # optimiser steps from the base model on: SFT, then training
    discriminator_updates: int  # its warm-up, then training
    candidates: int  # sampled for each answer
    passes: int  # forward passes for the longest answer: the generator's for each token, the discriminator's scores


def budget(config: Config, name: MethodName) -> Budget:
    """``config``: the method's own. SFT with ``steps=auto`` is counted as its ``max_steps``."""
    method = METHODS[name]
    candidates = method.answering.candidates
    return Budget(
        rollouts=num_rollouts(config, method),
        generator_steps=sft_steps(config) + (loop_steps(config) if method.trains == "generator" else 0),
        discriminator_updates=_discriminator_updates(config, method),
        candidates=candidates,
        passes=candidates * config.task.response_tokens + (candidates if candidates > 1 else 0),
    )


def num_rollouts(config: Config, method: Method) -> int:
    """Sampled for updates, the discriminator's warm-up included."""
    warmup = config.discriminator_warmup_updates * config.discriminator_warmup_rollouts if method.scores else 0
    return warmup + (loop_rollouts(config) if method.trains == "generator" else 0)


def sft_steps(config: Config) -> int:
    """At most."""
    settings = config.warmup.sft
    return settings.max_steps if isinstance(settings.steps, str) else settings.steps


def loop_steps(config: Config) -> int:
    """Optimiser steps of all iterations: one each, unless the algorithm goes over a batch in epochs or minibatches."""
    settings = config.generator.active
    return config.run.iterations * getattr(settings, "epochs", 1) * getattr(settings, "minibatches", 1)


def _discriminator_updates(config: Config, method: Method) -> int:
    """An adaptive rate is taken to stay where it starts."""
    settings = config.warmup.discriminator
    warmup = settings.steps if method.scores or settings.type == "labels" else 0
    if method.trains != "generator":
        return warmup
    return warmup + int(config.run.iterations * config.discriminator.updates_per_generator_update + 1e-9)
