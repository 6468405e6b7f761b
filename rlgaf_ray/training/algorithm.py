"""The protocol between the learner and an RL algorithm; ``training.algorithms`` lists the built-in ones."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from rlgaf_ray.config.schema import Config
from rlgaf_ray.models.discriminator import DiscriminatorNetwork
from rlgaf_ray.training.distributed import Group, gather_state_dict, load_full_state_dict
from rlgaf_ray.training.optimizer import load_optimizer, save_optimizer
from rlgaf_ray.training.policy import KLController, Policy
from rlgaf_ray.types import Metrics, SequenceBatch, TrainBatch, WeightUpdate

OPTIMIZER = "optimizer.safetensors"


@dataclass
class TrainedNetwork:
    """A network that an algorithm trains in addition to the policy. The learner saves, loads and adjusts it."""

    model: DiscriminatorNetwork
    optimizer: torch.optim.Optimizer
    learning_rate_factor: float = 1.0
    """Multiplier of the configured learning rate, lowered by the guard. The algorithm must apply it."""

    def save(self, folder: Path, group: Group) -> None:
        """Write weights and optimiser moments as full tensors; called on every rank, written by rank 0."""
        state = gather_state_dict(self.model.network, group)
        if state is not None:
            self.model.export(folder, state)
        save_optimizer(self.optimizer, folder / OPTIMIZER, group)

    def load(self, folder: Path) -> None:
        """Restore what ``save`` wrote."""
        load_full_state_dict(self.model.network, folder)
        load_optimizer(self.optimizer, folder / OPTIMIZER)


class Algorithm(Protocol):
    """Updates the policy from scored rollouts. A subclass must define ``kl`` and ``update``.

    Every rank of a group makes the same calls with the full batch; ``policy.batching`` selects the rank's rows.
    """

    kl: KLController
    """Coefficient of the KL to the frozen reference; the guard can raise it."""

    @abstractmethod
    def update(
        self,
        policy: Policy,
        batch: TrainBatch,
        sequence_rewards: torch.Tensor,
        iteration: int,
        text: SequenceBatch | None,
    ) -> Metrics:
        """Update the policy on B responses, in one or more optimiser steps (``policy.step``).

        Args:
            policy: the policy to update.
            batch: sequences [B, T], their behaviour log-probs, discriminator scores [B].
            sequence_rewards: float32 [B], one reward per response.
            iteration: counted from 0.
            text: real text, if the algorithm's config section requests it (``AlgorithmSettings.text``).

        Returns:
            Metrics, logged as ``generator/<name>``. A non-finite value triggers the guard.
        """
        ...

    def networks(self) -> Mapping[str, TrainedNetwork]:
        """Return the additional networks by checkpoint folder name; every call returns the same objects."""
        return {}

    def load_discriminator(self, update: WeightUpdate) -> Metrics:
        """Copy the discriminator's weights. Called only if the config section sets ``needs_discriminator``."""
        raise AssertionError(f"{type(self).__name__} has no discriminator")

    def state_dict(self) -> dict[str, Any]:
        """Return the JSON-serialisable state to checkpoint besides weights and optimiser moments."""
        return {"kl": self.kl.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.kl.load_state_dict(state["kl"])


class AlgorithmFactory(Protocol):
    """Builds an algorithm in the learner's process; with Ray the factory is pickled."""

    def __call__(self, folder: Path, config: Config, policy: Policy, *, pad_token_id: int) -> Algorithm:
        """Build the algorithm for this policy; use ``policy.device`` and ``policy.group``.

        ``folder``: the model that training starts from.
        """
        ...
