"""The learner: number of processes, sharding, precision and micro-batches."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlgaf_ray.config.discriminator import DiscriminatorSection
from rlgaf_ray.config.rollout import RolloutSection
from rlgaf_ray.config.section import Positive, Section


class FsdpSection(Section):
    """Settings of ``learner.strategy=fsdp``."""

    mixed_precision: bool = Field(
        False, description="all-gather and compute in bfloat16; gradients are reduced in float32"
    )
    offload_reference: bool = Field(
        False, description="keep the shards of the frozen reference in CPU memory between forward passes"
    )


class LearnerSection(Section):
    """Processes, sharding, precision and micro-batches of the learner."""

    num_workers: Positive = Field(1, description="data-parallel learner processes")
    strategy: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="for several workers of learner or discriminator; ddp: a full replica each; fsdp: weights, "
        "gradients and optimiser state sharded across workers",
    )
    fsdp: FsdpSection = FsdpSection()
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="autocast of learner, discriminator and warm-ups; auto: bfloat16 if the hardware supports it",
    )
    micro_batch_size: Positive = Field(
        64, description="sequences per forward pass; gradients are accumulated over the batch"
    )
    micro_batch_tokens: Positive | None = Field(
        None,
        description="token budget per forward pass, padding included, e.g. 4096; replaces micro_batch_size and batches "
        "sequences of similar length together; null: off",
    )
    logprob_chunk_tokens: Positive | None = Field(
        None,
        description="response tokens whose logits are materialised at a time, e.g. 512, and recomputed in the backward "
        "pass; null: all at once",
    )
    activation_checkpointing: bool = Field(
        False, description="recompute transformer blocks in the backward pass instead of storing their activations"
    )


def check_workers(learner: LearnerSection, discriminator: DiscriminatorSection, rollout: RolloutSection) -> None:
    """Raise ``ValueError`` for idle learner processes, or for FSDP with a single process."""
    learners, discriminators = learner.num_workers, discriminator.num_workers
    if learner.strategy == "fsdp" and learners == discriminators == 1:
        raise ValueError(
            "learner.strategy=fsdp shards weights across workers, but learner.num_workers and "
            "discriminator.num_workers are 1: raise one of them, or set learner.strategy=ddp"
        )
    if learners > rollout.batch_size:
        raise ValueError(
            f"learner.num_workers={learners} exceeds rollout.batch_size={rollout.batch_size}, and some workers would "
            f"be idle: set it to {rollout.batch_size} or less"
        )
