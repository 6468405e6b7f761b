"""The protocol of a rollout engine: prompts in, rollouts out, new weights between calls."""

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
    """Samples from one copy of the generator.

    ``config.engines.ENGINES`` says what an engine can do. A class that derives from this one need not define what its
    traits exclude: ``sleep`` and ``wake_up`` (``sleeps``), ``meet`` (``device_transfer``).
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
            max_tokens: most tokens of one prompt and its response together.
            device: a torch device, ``cpu`` or ``cuda``.
            threads: compute threads on CPU; None takes what torch is set to.
            transfer: how new weights will come.
        """
        ...

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingSettings, *, seeds: Sequence[int]) -> list[Rollout]:
        """Answer each prompt ``sampling.samples_per_prompt`` times.

        ``seeds`` holds one seed per rollout, in output order (samples of one prompt adjacent), so that a
        rollout does not depend on which engine made it or on what else was in the batch.
        """
        ...

    def update_weights(self, update: WeightUpdate | DeviceUpdate) -> Metrics:
        """Load new weights, drop what was computed with the old ones, take the new version."""
        ...

    def close(self) -> None:
        """Free the engine's memory."""
        ...

    def sleep(self) -> None:
        """Free GPU memory; the engine generates again after ``wake_up``."""
        raise AssertionError(f"{type(self).__name__} cannot sleep")

    def wake_up(self) -> None:
        """Reallocate GPU memory after ``sleep``."""
        raise AssertionError(f"{type(self).__name__} cannot sleep")

    def meet(self, rendezvous: Rendezvous, engine: int) -> None:
        """Join the learner's NCCL broadcast as engine number ``engine``."""
        raise AssertionError(f"{type(self).__name__} takes no weights over GPUs")
