"""Moving averages of a network's weights: for evaluation and export, and for SeqGAN's rollout policy."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from rlgaf_ray.models.folder import save_network
from rlgaf_ray.training.distributed import (
    SINGLE_PROCESS,
    Group,
    gather_state_dict,
    load_full_state_dict,
    local,
    reshard,
)


class MovingAverage:
    """An exponential moving average of a network's weights, updated after every optimiser step.

    With ``debiased`` it is the weighted mean of the networks after each of the n steps so far, the i-th with weight
    rate^(n - i) / sum, excluding the initial network::

        average = r * average + (1 - r) * network,  r = (rate - rate^n) / (1 - rate^n)

    Iterate averaging: Polyak & Juditsky 1992; for a GAN's generator: Yaz et al. 2019 (arXiv 1806.04498). Debiasing:
    Kingma & Ba 2015 (arXiv 1412.6980), section 3. The first step copies the network, early steps have about equal
    weights, and after about 3 / (1 - rate) steps r reaches the rate. Without ``debiased`` r is the rate at all times.
    """

    def __init__(self, network: PreTrainedModel, *, rate: float, debiased: bool) -> None:
        self.network = network.requires_grad_(False)
        self.rate = rate
        self.debiased = debiased
        self.num_steps = 0

    def update(self, network: nn.Module) -> None:
        """Average in the network's weights after an optimiser step."""
        self.num_steps += 1
        reshard(self.network)
        update_average(self.network, network, rate=self.rate_now)

    @property
    def rate_now(self) -> float:
        """The effective rate r of the last step."""
        initial_weight = self.rate**self.num_steps if self.debiased else 0.0
        return (self.rate - initial_weight) / (1.0 - initial_weight)

    def save(self, folder: Path, group: Group = SINGLE_PROCESS) -> None:
        """Write full weights; called on every rank, written by rank 0."""
        state = gather_state_dict(self.network, group)
        if state is not None:
            save_network(self.network, folder, state)

    def load(self, folder: Path, *, num_steps: int) -> None:
        """Restore the average after ``num_steps`` updates."""
        load_full_state_dict(self.network, folder)
        self.num_steps = num_steps


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, *, rate: float) -> None:
    """Set average = rate * average + (1 - rate) * network for every parameter.

    At 0.8 this is the rollout policy update of SeqGAN's code, except that SeqGAN copies the embedding unaveraged.
    Raises ValueError for a rate outside [0, 1].
    """
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"rate={rate} must be between 0 and 1")
    for slow, fast in zip(average.parameters(), network.parameters(), strict=True):
        local(slow).lerp_(local(fast), 1.0 - rate)
