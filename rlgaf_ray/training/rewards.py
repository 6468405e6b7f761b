"""Reward whitening and clipping before the policy update."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from rlgaf_ray.config.reward import RewardSection
from rlgaf_ray.objectives.advantages import RunningStatistics
from rlgaf_ray.types import Metrics, TrainBatch


class RewardShaping:
    """Whitens rewards by running statistics over iterations, then clips them; both are optional.

    As the discriminator trains, mean and scale of its scores drift. Whitening keeps the reward on a constant scale
    relative to the KL, and clipping keeps single scores from dominating.
    """

    def __init__(self, settings: RewardSection) -> None:
        self.settings = settings
        self.statistics = RunningStatistics()

    def __call__(self, rewards: Tensor, batch: TrainBatch) -> tuple[Tensor, TrainBatch, Metrics]:
        """Shape the rewards [B] and rescale the batch's action values (SeqGAN) to the same unit."""
        if self.settings.whiten:
            self.statistics.update(rewards)
        shaped, metrics = self._apply(rewards), Metrics()
        if self.settings.clip is not None:
            metrics["reward/clipped_share"] = float((shaped.abs() >= self.settings.clip).float().mean())
        if batch.action_values is not None:
            values = self._apply(batch.action_values) * batch.sequences.response_mask
            batch = replace(batch, action_values=values)
        return shaped, batch, metrics

    def _apply(self, values: Tensor) -> Tensor:
        if self.settings.whiten:
            values = self.statistics.whiten(values)
        limit = self.settings.clip
        return values if limit is None else values.clamp(-limit, limit)
