"""The engine that a config asks for, and how it samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlgaf_ray.config.schema import Config
from rlgaf_ray.engines.base import RolloutEngine
from rlgaf_ray.types import SamplingSettings
from rlgaf_ray.weights.choice import Backend


def build_engine(
    model_folder: str | Path,
    config: Config,
    *,
    max_tokens: int,
    device: str = "cpu",
    threads: int | None = None,
    transfer: Backend = "object_store",
) -> RolloutEngine:
    """vLLM or transformers; ``max_tokens`` is the room for one prompt and its response."""
    if config.rollout.engine == "transformers":
        from rlgaf_ray.engines.transformers import TransformersEngine

        return TransformersEngine(
            model_folder, dtype=config.model.dtype, device=device, trust_remote_code=config.model.trust_remote_code
        )
    options: dict[str, Any] = {
        "dtype": config.model.dtype,
        "max_model_len": max_tokens,
        "kv_cache_mib": config.rollout.kv_cache_mib,
        "gpu_memory_utilization": config.rollout.gpu_memory_utilization,
        "threads": threads,
        "trust_remote_code": config.model.trust_remote_code,
        "tensor_parallel_size": config.rollout.tensor_parallel_size,
        "transfer": transfer,
        "sleep_level": config.rollout.sleep_level,
    }
    if config.rollout.engine == "vllm_async":
        from rlgaf_ray.engines.vllm_async import AsyncVLLMEngine

        return AsyncVLLMEngine(model_folder, mid_flight=config.weights.mid_flight, **options)
    from rlgaf_ray.engines.vllm import VLLMEngine

    return VLLMEngine(model_folder, **options)


def sampling_settings(config: Config, *, samples_per_prompt: int | None = None) -> SamplingSettings:
    settings = config.rollout
    return SamplingSettings(
        max_new_tokens=config.task.response_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        samples_per_prompt=samples_per_prompt or settings.samples_per_prompt,
        stop_at_end_of_text=config.stop_at_end_of_text,
    )
