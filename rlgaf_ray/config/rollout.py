"""Rollouts: engine, sampling, weight transfer and schedule."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlgaf_ray.config.cluster import ClusterSection
from rlgaf_ray.config.engines import ENGINES, EngineName, EngineTraits, engines_with
from rlgaf_ray.config.section import Fraction, NonNegative, Positive, Rate, Section


class RolloutSection(Section):
    """The rollout engine, its workers, batch size and sampling."""

    engine: EngineName = Field(
        "vllm",
        description="vllm: in the worker's process; vllm_async: in a separate one, as weights.in_flight "
        "needs; transformers: slower, runs wherever torch does",
    )
    tensor_parallel_size: Positive = Field(1, description="tensor-parallel GPUs per engine")
    sleep_level: Literal[0, 1, 2] = Field(
        0,
        description="vLLM sleep level between rollouts; 0: stay awake; 1: offload weights to CPU; 2: discard them",
    )
    num_workers: Positive | None = Field(
        None, description="number of engines; null: two on CPU with two or more cores, else one"
    )
    requests_per_worker: Positive | None = Field(
        None,
        description="chunks of a batch per worker, taken from a queue; more balance load across slow workers, fewer "
        "batch more efficiently; null: 1, up to 4 for large batches",
    )
    batch_size: Positive = Field(64, description="rollouts per iteration, over all workers")
    samples_per_prompt: Positive = 4
    free_prompts: Fraction = Field(
        0.0, description="share of each batch's prompts taken from the task's prompts without answers"
    )
    temperature: Rate = 1.0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0,
        description="nucleus sampling; below 1 for generator.algorithm=gumbel only, since the others need log-probs of "
        "the full distribution",
    )
    top_k: NonNegative = Field(0, description="top-k sampling, with the same restriction as top_p; 0: all tokens")
    stop_at_end_of_text: bool | None = Field(
        None,
        description="false: mask end of text, so that all responses have full length; null: false for imdb and bridge",
    )
    kv_cache_mib: Positive = Field(256, description="size of vLLM's KV cache on CPU, in MiB")
    gpu_memory_utilization: Annotated[float, Field(gt=0.0, le=1.0)] = 0.4

    @model_validator(mode="after")
    def _whole_groups(self) -> RolloutSection:
        if self.batch_size % self.samples_per_prompt:
            raise ValueError(
                f"rollout.batch_size={self.batch_size} is not divisible by "
                f"rollout.samples_per_prompt={self.samples_per_prompt}; use {self._divisible_sizes()}"
            )
        return self

    def _divisible_sizes(self) -> str:
        """Name the batch sizes next to ``batch_size`` that are divisible by ``samples_per_prompt``."""
        below = self.batch_size // self.samples_per_prompt * self.samples_per_prompt
        return " or ".join(str(size) for size in (below, below + self.samples_per_prompt) if size)

    @property
    def traits(self) -> EngineTraits:
        return ENGINES[self.engine]

    @property
    def prompts_per_iteration(self) -> int:
        return self.batch_size // self.samples_per_prompt


class WeightsSection(Section):
    """Weight transfer from the learner to the rollout engines."""

    transfer: Literal["auto", "object_store", "nccl", "ipc"] = Field(
        "auto",
        description="transport of new weights to the engines; auto: ipc on a shared GPU, nccl between GPUs, else "
        "object_store",
    )
    bucket_mib: Positive = Field(
        32, description="transfer=object_store: size of a chunk of weights in MiB; a larger tensor is its own chunk"
    )
    in_flight: bool = Field(False, description="in-flight weight updates: engines load new weights during generation")


class ScheduleSection(Section):
    """Synchronous or asynchronous rollouts, and the staleness allowed."""

    mode: Literal["sync", "async"] = Field(
        "sync", description="async: generate the next rollouts while learner and discriminator train"
    )
    max_staleness: Positive = Field(
        1, description="async: largest lag of a rollout behind the policy, in updates; also the batches generated ahead"
    )


def check_engines(
    rollout: RolloutSection,
    weights: WeightsSection,
    schedule: ScheduleSection,
    cluster: ClusterSection,
    *,
    average_decay: float,
) -> None:
    """Raise ``ValueError`` for settings that the engine, its device or the schedule does not support."""
    traits, asynchronous = rollout.traits, schedule.mode == "async"
    device_transfer, on_cpu = weights.transfer in ("nccl", "ipc"), cluster.gpus_per_actor == 0
    if rollout.temperature < traits.lowest_temperature:
        raise ValueError(
            f"rollout.temperature={rollout.temperature:g} is sampled at {traits.lowest_temperature:g} by "
            f"rollout.engine={rollout.engine}, so its log-probs would differ from the learner's: set "
            f"rollout.temperature={traits.lowest_temperature:g} or more, or rollout.engine=transformers"
        )
    if weights.in_flight and not traits.in_flight:
        raise ValueError(
            f"weights.in_flight=true is not supported by rollout.engine={rollout.engine}: set "
            f"rollout.engine={engines_with('in_flight')}"
        )
    if weights.in_flight and not asynchronous:
        raise ValueError(
            "weights.in_flight=true has no effect with schedule.mode=sync, where no rollouts are in flight during an "
            "update: set schedule.mode=async, or weights.in_flight=false"
        )
    if weights.in_flight and average_decay > 0:
        raise ValueError(
            "weights.in_flight=true would load the evaluated moving average (generator.average_decay) into engines "
            "with rollouts in flight: set generator.average_decay=0, or weights.in_flight=false"
        )
    if asynchronous and rollout.sleep_level > 0:
        raise ValueError(
            f"rollout.sleep_level={rollout.sleep_level} needs idle engines, but with schedule.mode=async they generate "
            "continuously: set rollout.sleep_level=0, or schedule.mode=sync"
        )
    if device_transfer and asynchronous and not weights.in_flight:
        raise ValueError(
            f"weights.transfer={weights.transfer} is a collective of learner and engines, but with schedule.mode=async "
            "engines load weights at different times: set weights.in_flight=true, or weights.transfer=auto"
        )
    if rollout.tensor_parallel_size > 1 and not traits.tensor_parallel:
        raise ValueError(f"rollout.engine={rollout.engine} runs on one device only: set rollout.tensor_parallel_size=1")
    if device_transfer and not traits.device_transfer:
        raise ValueError(
            f"weights.transfer={weights.transfer} is not supported by rollout.engine={rollout.engine}: set "
            f"rollout.engine={engines_with('device_transfer')}, or weights.transfer=auto"
        )
    if rollout.sleep_level > 0 and not traits.sleeps:
        raise ValueError(
            f"rollout.sleep_level={rollout.sleep_level} is not supported by rollout.engine={rollout.engine}: set "
            f"rollout.sleep_level=0, or rollout.engine={engines_with('sleeps')}"
        )
    if on_cpu and rollout.sleep_level > 0:
        raise ValueError(
            f"rollout.sleep_level={rollout.sleep_level} frees GPU memory, but the engines run on CPU: set "
            "rollout.sleep_level=0, or cluster.gpus_per_actor"
        )
    if on_cpu and device_transfer:
        raise ValueError(
            f"weights.transfer={weights.transfer} needs GPUs, but the run is on CPU: set weights.transfer=auto, or "
            "cluster.gpus_per_actor"
        )
