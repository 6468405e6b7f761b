"""The warm-ups: next-token training of the generator, SFT, and the discriminator's first updates."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rlgaf_ray.config.discriminator import DiscriminatorSection
from rlgaf_ray.config.section import Fraction, NonNegative, NonNegativeRate, Positive, Rate, Section


class GeneratorWarmup(Section):
    """Base warm-up, by next-token loss: on reviews packed into blocks (imdb), else on prompts and their responses."""

    steps: NonNegative | None = Field(
        None, description="default: 1500 for a model that is trained from nothing, 0 for a pretrained one"
    )
    batch_size: Positive = 32
    block_tokens: Positive = Field(64, description="imdb: reviews are packed end to end into blocks of this length")
    learning_rate: Rate = 2e-3
    weight_decay: NonNegativeRate = 0.1
    warmup_fraction: Fraction = 0.05
    max_grad_norm: Rate = 1.0


class SftWarmup(Section):
    """Supervised fine-tuning: next-token loss on the demonstrations' responses."""

    steps: NonNegative | Literal["auto"] = Field(
        "auto",
        description="auto: as many passes over the demonstrations as give the lowest NLL by cross-validation; 0: none",
    )
    max_steps: Positive = Field(800, description="auto: try no more than this many")
    batch_size: Positive = 64
    learning_rate: Rate = Field(1e-4, description="constant after ten steps of warm-up")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.1, description="of the network while it is fine-tuned")
    contrastive_weight: NonNegativeRate = Field(
        0.0,
        description="of a second loss: which prompt a response belongs to, by the model's own likelihood; e.g. 3 where "
        "prompts carry meaning",
    )
    contrastive_prompts: Positive = Field(8, description="other prompts to choose from; each costs a forward pass")
    weight_decay: NonNegativeRate = 0.1
    max_grad_norm: Rate = 1.0


class DiscriminatorWarmup(Section):
    """Updates before the first of the generator."""

    type: Literal["rollouts", "labels"] = Field(
        "rollouts",
        description="rollouts: demonstrations against samples of the SFT model, with the loss, batches and learning "
        "rate of training; labels: against demonstrations of the unwanted kind (RLGAF, section 3.3)",
    )
    steps: NonNegative = 100
    rollouts: Positive | None = Field(
        None, description="rollouts: of each update, in whole groups; null: rollout.batch_size"
    )
    batch_size: Positive = Field(64, description="labels")
    learning_rate: Rate = Field(2e-4, description="labels")
    weight_decay: NonNegativeRate = 0.01
    warmup_fraction: Fraction = 0.1
    max_grad_norm: Rate = 1.0


class WarmupSection(Section):
    """Supervised warm-ups of generator and discriminator, before the first rollout."""

    generator: GeneratorWarmup = GeneratorWarmup()
    sft: SftWarmup = SftWarmup()
    discriminator: DiscriminatorWarmup = DiscriminatorWarmup()
    num_workers: Positive = Field(1, description="Ray Train workers; one runs in the driver's process")
    checkpoint_every: Positive = Field(500, description="steps between resumable warm-up checkpoints")
    cache: str | None = Field(None, description="where warm-ups and data are kept (default: the user's cache folder)")


def check_warmups(warmup: WarmupSection, discriminator: DiscriminatorSection) -> None:
    """Raise ``ValueError`` for a warm-up whose batch is smaller than its number of workers, or that teaches the
    discriminator what its control must not know."""
    judge = warmup.discriminator
    if discriminator.labels == "shuffled" and judge.type == "labels" and judge.steps > 0:
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
