"""The warm-ups: base warm-up of the generator, SFT, and the discriminator's first updates."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rlgaf_ray.config.discriminator import DiscriminatorSection
from rlgaf_ray.config.section import Fraction, NonNegative, NonNegativeRate, Positive, Rate, Section


class GeneratorWarmup(Section):
    """Base warm-up with next-token loss, on packed reviews (imdb) or on prompts and responses."""

    steps: NonNegative | None = Field(
        None, description="optimiser steps; null: 1500 for a model trained from scratch, else 0"
    )
    batch_size: Positive = 32
    block_tokens: Positive = Field(64, description="imdb: length of the blocks into which reviews are packed")
    learning_rate: Rate = 2e-3
    weight_decay: NonNegativeRate = 0.1
    warmup_fraction: Fraction = 0.05
    max_grad_norm: Rate = 1.0


class SftWarmup(Section):
    """Supervised fine-tuning with next-token loss on the responses of the demonstrations."""

    steps: NonNegative | Literal["auto"] = Field(
        "auto",
        description="optimiser steps; auto: the number with the lowest cross-validated NLL; 0: no SFT",
    )
    max_steps: Positive = Field(800, description="steps=auto: largest number of steps to try")
    batch_size: Positive = 64
    learning_rate: Rate = Field(1e-4, description="constant after ten warm-up steps")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.1, description="dropout during SFT")
    contrastive_weight: NonNegativeRate = Field(
        0.0,
        description="weight of a contrastive loss: classify the prompt of a response by the model's likelihood; e.g. 3 "
        "for tasks whose prompts determine the response; 0: off",
    )
    contrastive_prompts: Positive = Field(8, description="other prompts per response in that loss, each a forward pass")
    weight_decay: NonNegativeRate = 0.1
    max_grad_norm: Rate = 1.0


class DiscriminatorWarmup(Section):
    """Discriminator updates before the first generator update."""

    type: Literal["rollouts", "labels"] = Field(
        "rollouts",
        description="rollouts: demonstrations against samples of the SFT model, with the loss, batch size and learning "
        "rate of training; labels: demonstrations against labelled negatives (RLGAF, section 3.3)",
    )
    steps: NonNegative = 100
    rollouts: Positive | None = Field(
        None, description="type=rollouts: rollouts per update, in full groups; null: rollout.batch_size"
    )
    batch_size: Positive = Field(64, description="type=labels: rows per update")
    learning_rate: Rate = Field(2e-4, description="type=labels: learning rate")
    weight_decay: NonNegativeRate = 0.01
    warmup_fraction: Fraction = 0.1
    max_grad_norm: Rate = 1.0


class WarmupSection(Section):
    """Supervised warm-ups of generator and discriminator, before the first rollout."""

    generator: GeneratorWarmup = GeneratorWarmup()
    sft: SftWarmup = SftWarmup()
    discriminator: DiscriminatorWarmup = DiscriminatorWarmup()
    num_workers: Positive = Field(
        1,
        description="Ray Train workers, each with a core or a GPU; 1: in the driver's process on CPU, with at most "
        "cluster.gpus_per_actor of a GPU otherwise",
    )
    checkpoint_every: Positive = Field(500, description="steps between resumable warm-up checkpoints")
    cache: str | None = Field(None, description="folder that caches warm-ups and data; null: the user's cache folder")


def check_warmups(warmup: WarmupSection, discriminator: DiscriminatorSection) -> None:
    """Raise ``ValueError`` for idle workers, or for a labelled warm-up of the shuffled-label control."""
    judge = warmup.discriminator
    if discriminator.labels == "shuffled" and judge.type == "labels" and judge.steps > 0:
        raise ValueError(
            "discriminator.labels=shuffled must not see correct labels, but warmup.discriminator.type=labels trains on "
            "them: set warmup.discriminator.type=rollouts, or warmup.discriminator.steps=0"
        )
    for name in ("generator", "sft", "discriminator"):
        batch_size = getattr(warmup, name).batch_size
        if warmup.num_workers > batch_size:
            raise ValueError(
                f"warmup.num_workers={warmup.num_workers} exceeds warmup.{name}.batch_size={batch_size}, and some "
                f"workers would be idle: set it to {batch_size} or less"
            )
