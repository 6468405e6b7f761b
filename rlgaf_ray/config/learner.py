"""The learner's processes: how many, what they share, how much of a batch they compute at a time."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlgaf_ray.config.discriminator import DiscriminatorSection
from rlgaf_ray.config.rollout import RolloutSection
from rlgaf_ray.config.section import Positive, Section


class FsdpSection(Section):
    """Settings of ``learner.strategy=fsdp``."""

    mixed_precision: bool = Field(
        False, description="weights are gathered and multiplied in bfloat16; gradients are summed in float32"
    )
    offload_reference: bool = Field(
        False, description="the frozen reference's shards stay in CPU memory between its passes, for GPUs short of it"
    )


class LearnerSection(Section):
    """Processes, sharding, precision and micro-batches of the learner."""

    num_workers: Positive = Field(1, description="processes that share each update of the generator")
    strategy: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="of several workers, here and of the discriminator: ddp: a replica each; fsdp: weights, gradients "
        "and optimiser state sharded across workers",
    )
    fsdp: FsdpSection = FsdpSection()
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="autocast of learner, discriminator and warm-ups; auto: bfloat16 where the processor has it"
    )
    micro_batch_size: Positive = Field(64, description="sequences a forward pass; gradients are accumulated")
    micro_batch_tokens: Positive | None = Field(
        None,
        description="in place of it: tokens a forward pass, padding included; sequences of like length stand together",
    )
    logprob_chunk_tokens: Positive | None = Field(
        None,
        description="response tokens whose logits exist at a time, computed again in the backward pass; null: all",
    )
    activation_checkpointing: bool = Field(
        False, description="blocks keep their inputs only and are computed again in the backward pass"
    )


def check_workers(learner: LearnerSection, discriminator: DiscriminatorSection, rollout: RolloutSection) -> None:
    """Raise ``ValueError`` for processes that would have nothing to do, or that a strategy cannot serve."""
    learners, discriminators = learner.num_workers, discriminator.num_workers
    if learner.strategy == "fsdp" and learners == discriminators == 1:
        raise ValueError(
            "learner.strategy=fsdp cuts weights over several workers: raise learner.num_workers or "
            "discriminator.num_workers, or set learner.strategy=ddp"
        )
    if learners > rollout.batch_size:
        raise ValueError(
            f"learner.num_workers={learners} is more than rollout.batch_size={rollout.batch_size}: "
            "some would have no sequence to learn from"
        )
