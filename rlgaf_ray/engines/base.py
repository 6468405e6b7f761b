"""The protocol of a rollout engine: prompts in, rollouts out, new weights between calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rlgaf_ray.types import Metrics, Prompt, Rollout, SamplingSettings, WeightUpdate
from rlgaf_ray.weights.manifest import DeviceUpdate


class RolloutEngine(Protocol):
    """Samples from one copy of the generator."""

    policy_version: int

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingSettings, *, seeds: Sequence[int]) -> list[Rollout]:
        """Answer each prompt ``sampling.samples_per_prompt`` times.

        ``seeds`` holds one seed per rollout, in output order (samples of one prompt adjacent), so that a
        rollout does not depend on which engine made it or on what else was in the batch.
        """
        ...

    def update_weights(self, update: WeightUpdate | DeviceUpdate) -> Metrics:
        """Load new weights, drop what was computed with the old ones, take the new version."""
        ...

    def close(self) -> None: ...
