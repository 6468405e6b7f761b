"""Rollouts: the engine and how it samples, how new weights reach it, when rollouts are made."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlgaf_ray.config.cluster import ClusterSection
from rlgaf_ray.config.engines import ENGINES, EngineName, EngineTraits, engines_with
from rlgaf_ray.config.section import Fraction, NonNegative, Positive, Rate, Section


class RolloutSection(Section):
    """The rollout engine, its workers, batch size and sampling."""

    engine: EngineName = Field(
        "vllm", description="vllm_async: vLLM in a process of its own, which weights.mid_flight needs"
    )
    tensor_parallel_size: Positive = Field(1, description="GPUs of one rollout engine")
    sleep_level: Literal[0, 1, 2] = Field(
        0, description="while others compute, engines move their weights to the host (1) or forget them (2); 0: stay"
    )
    num_workers: Positive | None = Field(
        None, description="engines that share the rollouts; default: two on CPUs with two cores or more, else one"
    )
    requests_per_worker: Positive | None = Field(
        None,
        description="parts of a batch that workers take as they get free, for each worker: more hold less of it to a "
        "slow one, fewer batch better; default: 1, and up to 4 for large batches",
    )
    batch_size: Positive = Field(64, description="rollouts an iteration, over all workers")
    samples_per_prompt: Positive = 4
    free_prompts: Fraction = Field(
        0.0, description="share of each batch's prompts that have no demonstration, from the task's own"
    )
    temperature: Rate = 1.0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0,
        description="below 1, as top_k above 0, for generator.algorithm=gumbel only: other algorithms learn from "
        "log-probs of the full distribution",
    )
    top_k: NonNegative = Field(0, description="0: all tokens")
    stop_at_end_of_text: bool | None = Field(
        None, description="false: end of text is masked, every response has full length; default: false for imdb only"
    )
    kv_cache_mib: Positive = Field(256, description="vLLM's KV cache on CPU")
    gpu_memory_utilization: Annotated[float, Field(gt=0.0, le=1.0)] = 0.4

    @model_validator(mode="after")
    def _whole_groups(self) -> RolloutSection:
        if self.batch_size % self.samples_per_prompt:
            raise ValueError(
                f"rollout.batch_size={self.batch_size} is not divisible by "
                f"rollout.samples_per_prompt={self.samples_per_prompt}"
            )
        return self

    @property
    def traits(self) -> EngineTraits:
        return ENGINES[self.engine]

    @property
    def prompts_per_iteration(self) -> int:
        return self.batch_size // self.samples_per_prompt


class WeightsSection(Section):
    """Weight transfer from the learner to the rollout engines."""

    transfer: Literal["auto", "object_store", "nccl", "ipc"] = Field(
        "auto", description="how new weights reach the engines; auto: as the placement allows"
    )
    bucket_mib: Positive = Field(
        32, description="of weights that travel at a time through the object store; an entry that is larger, alone"
    )
    mid_flight: bool = Field(False, description="engines take new weights in the middle of their rollouts")


class ScheduleSection(Section):
    """Synchronous or asynchronous rollouts, and the staleness allowed."""

    mode: Literal["sync", "async"] = Field(
        "sync", description="async: the next iterations' rollouts are made while learner and discriminator work"
    )
    max_staleness: Positive = Field(
        1, description="async: updates of the policy that a rollout may lag behind; as many batches are made ahead"
    )


def check_engines(
    rollout: RolloutSection,
    weights: WeightsSection,
    schedule: ScheduleSection,
    cluster: ClusterSection,
    *,
    average_decay: float,
) -> None:
    """Raise ``ValueError`` for what the engine, its device or the schedule cannot do."""
    traits, asynchronous = rollout.traits, schedule.mode == "async"
    device_transfer, on_cpu = weights.transfer in ("nccl", "ipc"), cluster.gpus_per_actor == 0
    if weights.mid_flight and not traits.mid_flight:
        raise ValueError(
            f"weights.mid_flight=true needs an engine that takes them: set rollout.engine={engines_with('mid_flight')}"
        )
    if weights.mid_flight and not asynchronous:
        raise ValueError(
            "weights.mid_flight=true is for rollouts that are made while weights arrive, and schedule.mode=sync makes "
            "none then: set schedule.mode=async, or weights.mid_flight=false"
        )
    if weights.mid_flight and average_decay > 0:
        raise ValueError(
            "weights.mid_flight=true would give rollouts the moving average that is evaluated beside them: "
            "set generator.average_decay=0, or weights.mid_flight=false"
        )
    if asynchronous and rollout.sleep_level > 0:
        raise ValueError(
            f"rollout.sleep_level={rollout.sleep_level} is for engines that wait, and with schedule.mode=async they "
            "sample all the time: set rollout.sleep_level=0, or schedule.mode=sync"
        )
    if device_transfer and asynchronous and not weights.mid_flight:
        raise ValueError(
            f"weights.transfer={weights.transfer} needs learner and engines at the same moment, and with "
            "schedule.mode=async engines take weights each in its own time: set weights.mid_flight=true, "
            "or weights.transfer=auto"
        )
    if rollout.tensor_parallel_size > 1 and not traits.tensor_parallel:
        raise ValueError(f"rollout.engine={rollout.engine} is on one device: set rollout.tensor_parallel_size=1")
    if device_transfer and not traits.device_transfer:
        raise ValueError(
            f"weights.transfer={weights.transfer} is not for rollout.engine={rollout.engine}: set "
            f"rollout.engine={engines_with('device_transfer')}, or weights.transfer=auto"
        )
    if rollout.sleep_level > 0 and not traits.sleeps:
        raise ValueError(
            f"rollout.sleep_level={rollout.sleep_level} is not for rollout.engine={rollout.engine}: set "
            f"rollout.sleep_level=0, or rollout.engine={engines_with('sleeps')}"
        )
    if on_cpu and rollout.sleep_level > 0:
        raise ValueError(
            f"rollout.sleep_level={rollout.sleep_level} gives up a GPU's memory, and the engines are on CPU: "
            "set rollout.sleep_level=0, or cluster.gpus_per_actor"
        )
    if on_cpu and device_transfer:
        raise ValueError(
            f"weights.transfer={weights.transfer} is between GPUs, and the run is on CPU: "
            "set weights.transfer=auto, or cluster.gpus_per_actor"
        )
