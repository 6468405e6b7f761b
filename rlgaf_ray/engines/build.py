"""The engine that a config asks for."""

from __future__ import annotations

from pathlib import Path

from rlgaf_ray.config.schema import Config
from rlgaf_ray.engines.base import RolloutEngine


def build_engine(
    model_folder: str | Path, config: Config, *, max_tokens: int, device: str = "cpu", threads: int | None = None
) -> RolloutEngine:
    """vLLM or transformers; ``max_tokens`` is the room for one prompt and its response."""
    match config.rollout.engine:
        case "vllm":
            from rlgaf_ray.engines.vllm import VLLMEngine

            return VLLMEngine(
                model_folder,
                dtype=config.model.dtype,
                max_model_len=max_tokens,
                kv_cache_mib=config.rollout.kv_cache_mib,
                gpu_memory_utilization=config.rollout.gpu_memory_utilization,
                threads=threads,
                trust_remote_code=config.model.trust_remote_code,
            )
        case "transformers":
            from rlgaf_ray.engines.transformers import TransformersEngine

            return TransformersEngine(
                model_folder, dtype=config.model.dtype, device=device, trust_remote_code=config.model.trust_remote_code
            )
