"""Protocol of a rollout engine: generate rollouts from prompts, update weights between calls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, Self

from rlgaf_ray.config.schema import Config
from rlgaf_ray.types import Metrics, Prompt, Rollout, SamplingSettings, WeightUpdate
from rlgaf_ray.weights.choice import Backend
from rlgaf_ray.weights.manifest import DeviceUpdate
from rlgaf_ray.weights.nccl import Rendezvous


class RolloutEngine(Protocol):
    """Samples rollouts from one copy of the generator.

    ``config.engines.ENGINES`` lists the capabilities of each engine. A subclass need not define methods that its traits
    exclude: ``sleep`` and ``wake_up`` (``sleeps``), ``join_transfer`` (``device_transfer``).
    """

    policy_version: int

    @classmethod
    def from_config(
        cls,
        model_folder: str | Path,
        config: Config,
        *,
        max_tokens: int,
        device: str,
        threads: int | None,
        transfer: Backend,
    ) -> Self:
        """Start an engine.

        Args:
            model_folder: a Hugging Face folder or hub id.
            max_tokens: maximum length of a prompt plus its response.
            device: a torch device, ``cpu`` or ``cuda``.
            threads: compute threads on CPU; None keeps torch's setting.
            transfer: backend for weight updates.
        """
        ...

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingSettings, *, seeds: Sequence[int]) -> list[Rollout]:
        """Sample ``sampling.samples_per_prompt`` responses to each prompt.

        ``seeds`` has one seed per rollout, in output order (samples of one prompt adjacent), so a rollout does not
        depend on the engine instance or on the rest of the batch.
        """
        ...

    def update_weights(self, update: WeightUpdate | DeviceUpdate) -> Metrics:
        """Load new weights, clear caches of the old ones and set ``policy_version``."""
        ...

    def close(self) -> None:
        """Free the engine's memory."""
        ...

    def sleep(self) -> None:
        """Free GPU memory until ``wake_up``."""
        raise AssertionError(f"{type(self).__name__} cannot sleep")

    def wake_up(self) -> None:
        """Reallocate GPU memory after ``sleep``."""
        raise AssertionError(f"{type(self).__name__} cannot sleep")

    def join_transfer(self, rendezvous: Rendezvous, engine: int) -> None:
        """Join the learner's NCCL broadcast as engine number ``engine``."""
        raise AssertionError(f"{type(self).__name__} does not support weight transfer between GPUs")
