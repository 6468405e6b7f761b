"""The rollout engines: the one table of their names, with what each can do.

It is here, below ``engines/``, because config rules and ``rlgaf plan`` read it without loading torch or vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

EngineName = Literal["vllm", "vllm_async", "transformers"]


@dataclass(frozen=True, slots=True)
class EngineTraits:
    """What the rest of the package asks of an engine, instead of its name.

    Attributes:
        engine: ``module:Class`` of an ``engines.base.RolloutEngine``, imported where an engine is built.
        vllm: runs on vLLM, which must be installed, has a KV cache of fixed size and limits concurrent sequences.
        any_architecture: runs models that only transformers knows, such as ``seqgan-lstm``.
        tensor_parallel: shards a model over several GPUs.
        sleeps: frees GPU memory between rollouts (``sleep`` and ``wake_up``).
        device_transfer: takes weights over NCCL and CUDA IPC (``meet``).
        mid_flight: takes weights while it generates.
    """

    engine: str
    vllm: bool = False
    any_architecture: bool = False
    tensor_parallel: bool = False
    sleeps: bool = False
    device_transfer: bool = False
    mid_flight: bool = False


ENGINES: Mapping[EngineName, EngineTraits] = {
    "vllm": EngineTraits(
        "rlgaf_ray.engines.vllm:VLLMEngine", vllm=True, tensor_parallel=True, sleeps=True, device_transfer=True
    ),
    "vllm_async": EngineTraits(
        "rlgaf_ray.engines.vllm_async:AsyncVLLMEngine",
        vllm=True,
        tensor_parallel=True,
        sleeps=True,
        device_transfer=True,
        mid_flight=True,
    ),
    "transformers": EngineTraits("rlgaf_ray.engines.transformers:TransformersEngine", any_architecture=True),
}


def engines_with(trait: str) -> str:
    """The names of the engines that have this trait, as an error message lists them."""
    return " or ".join(name for name, traits in ENGINES.items() if getattr(traits, trait))
