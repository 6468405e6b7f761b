"""What the learner asks of an algorithm; those of the package are listed in ``training.algorithms``."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from rlgaf_ray.config.schema import Config
from rlgaf_ray.models.discriminator import DiscriminatorNetwork
from rlgaf_ray.training.distributed import Group, restore_whole, whole_state
from rlgaf_ray.training.optimizer import load_optimizer, save_optimizer
from rlgaf_ray.training.policy import KLController, Policy
from rlgaf_ray.types import Metrics, SequenceBatch, TrainBatch, WeightUpdate

OPTIMIZER = "optimizer.safetensors"


@dataclass
class TrainedNetwork:
    """A network that an algorithm trains beside the policy. The learner saves, loads and adjusts it."""

    model: DiscriminatorNetwork
    optimizer: torch.optim.Optimizer
    learning_rate_factor: float = 1.0
    """Multiplies the configured learning rate. The guard lowers it, and the algorithm has to apply it."""

    def save(self, folder: Path, group: Group) -> None:
        """Write weights and moments as full tensors; every rank takes part, rank 0 writes."""
        state = whole_state(self.model.network, group)
        if state is not None:
            self.model.export(folder, state)
        save_optimizer(self.optimizer, folder / OPTIMIZER, group)

    def load(self, folder: Path) -> None:
        """Restore what ``save`` wrote."""
        restore_whole(self.model.network, folder)
        load_optimizer(self.optimizer, folder / OPTIMIZER)


class Algorithm(Protocol):
    """Updates the policy from scored rollouts. A subclass needs ``kl`` and ``update``; the rest has defaults.

    In a group every rank is called alike, with the whole batch: ``policy.batching`` gives each its share of the rows.
    """

    kl: KLController
    """The coefficient of the KL to the frozen reference, which the guard can raise."""

    @abstractmethod
    def update(
        self,
        policy: Policy,
        batch: TrainBatch,
        sequence_rewards: torch.Tensor,
        iteration: int,
        text: SequenceBatch | None,
    ) -> Metrics:
        """One update, of one or more steps (``policy.step``), on B responses.

        Args:
            batch: sequences [B, T], the log-probs under which they were sampled, discriminator scores [B].
            sequence_rewards: float32 [B], of whole responses.
            iteration: from 0.
            text: real text, if the section of the algorithm in use asks for some (``AlgorithmSettings.text``).

        Returns:
            Metrics, logged as ``generator/<name>``. The guard acts on one that is not finite.
        """
        ...

    def networks(self) -> Mapping[str, TrainedNetwork]:
        """Networks trained beside the policy, by their folders in a checkpoint; each call returns the same objects."""
        return {}

    def load_discriminator(self, update: WeightUpdate) -> Metrics:
        """Copy the discriminator's weights. Called only where the section sets ``needs_discriminator``."""
        raise AssertionError(f"{type(self).__name__} holds no discriminator")

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps beside weights and moments, as JSON."""
        return {"kl_coefficient": self.kl.coefficient}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.kl.coefficient = state["kl_coefficient"]


class AlgorithmFactory(Protocol):
    """Builds an algorithm in the learner's process; with Ray the factory is pickled."""

    def __call__(self, folder: Path, config: Config, policy: Policy, *, pad_token_id: int) -> Algorithm:
        """The algorithm of this policy, in the learner's process. On Ray the factory is pickled.

        ``folder``: the model that training starts from. Device and group are ``policy.device`` and ``policy.group``.
        """
        ...
