"""Build the rollout engine and sampling settings from a config."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from rlgaf_ray.config.schema import Config
from rlgaf_ray.engines.base import RolloutEngine
from rlgaf_ray.types import SamplingSettings
from rlgaf_ray.weights.choice import Backend


def engine_class(config: Config) -> type[RolloutEngine]:
    """Import the configured engine's module, and with it its backend (such as vLLM), and return the class."""
    module, _, name = config.rollout.traits.engine.partition(":")
    return getattr(import_module(module), name)


def build_engine(
    model_folder: str | Path,
    config: Config,
    *,
    max_tokens: int,
    device: str = "cpu",
    threads: int | None = None,
    transfer: Backend = "object_store",
) -> RolloutEngine:
    """Start the engine named by ``rollout.engine``; arguments as in ``RolloutEngine.from_config``."""
    return engine_class(config).from_config(
        model_folder, config, max_tokens=max_tokens, device=device, threads=threads, transfer=transfer
    )


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
