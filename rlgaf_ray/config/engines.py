"""The table of rollout engines and their capabilities.

It is here and not in ``engines/`` so that config rules and ``rlgaf plan`` can read it without importing torch or vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

EngineName = Literal["vllm", "vllm_async", "transformers"]


@dataclass(frozen=True, slots=True)
class EngineTraits:
    """Capabilities of an engine; the rest of the package reads these traits, never the engine's name.

    Attributes:
        engine: ``module:Class`` of an ``engines.base.RolloutEngine``, imported when an engine is built.
        vllm: runs on vLLM: needs it installed, has a KV cache of fixed size and limits concurrent sequences.
        any_architecture: runs models that only transformers supports, such as ``seqgan-lstm``.
        tensor_parallel: can shard a model across GPUs.
        sleeps: can free its GPU memory between rollouts (``sleep`` and ``wake_up``).
        device_transfer: receives weights over NCCL and CUDA IPC (``join_transfer``).
        in_flight: can load new weights while it generates.
        lowest_temperature: silently samples at this temperature instead of a lower one.
    """

    engine: str
    vllm: bool = False
    any_architecture: bool = False
    tensor_parallel: bool = False
    sleeps: bool = False
    device_transfer: bool = False
    in_flight: bool = False
    lowest_temperature: float = 0.0


VLLM_LOWEST_TEMPERATURE = 0.01  # _MAX_TEMP in vllm/sampling_params.py

ENGINES: Mapping[EngineName, EngineTraits] = {
    "vllm": EngineTraits(
        "rlgaf_ray.engines.vllm:VLLMEngine",
        vllm=True,
        tensor_parallel=True,
        sleeps=True,
        device_transfer=True,
        lowest_temperature=VLLM_LOWEST_TEMPERATURE,
    ),
    "vllm_async": EngineTraits(
        "rlgaf_ray.engines.vllm_async:AsyncVLLMEngine",
        vllm=True,
        tensor_parallel=True,
        sleeps=True,
        device_transfer=True,
        in_flight=True,
        lowest_temperature=VLLM_LOWEST_TEMPERATURE,
    ),
    "transformers": EngineTraits("rlgaf_ray.engines.transformers:TransformersEngine", any_architecture=True),
}


def engines_with(trait: str) -> str:
    """List the engines that have this trait, for an error message."""
    return " or ".join(name for name, traits in ENGINES.items() if getattr(traits, trait))
