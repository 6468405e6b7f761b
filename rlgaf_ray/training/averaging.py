"""Moving averages of a network's weights: for evaluation and export, and for SeqGAN's rollout policy."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from rlgaf_ray.models.folder import save_network
from rlgaf_ray.training.distributed import ALONE, Group, local, reshard, restore_whole, whole_state


class MovingAverage:
    """A copy of a network that follows it, moved once after every step of the optimiser.

    With ``debiased`` it is the weighted mean of the networks after each of the n steps so far, the i-th with weight
    rate^(n - i) / sum, and the network that training began with is no part of it::

        average = r * average + (1 - r) * network,  r = (rate - rate^n) / (1 - rate^n)

    Averaging iterates: Polyak & Juditsky 1992; of a GAN's generator: Yaz et al. 2019 (arXiv 1806.04498). The mean that
    is not tilted to its start: Kingma & Ba 2015 (arXiv 1412.6980), section 3. The first step copies, early ones weigh
    about equally, after some 3 / (1 - rate) steps r is the rate. Without ``debiased`` r is the rate from the start.
    """

    def __init__(self, network: PreTrainedModel, *, rate: float, debiased: bool) -> None:
        self.network = network.requires_grad_(False)
        self.rate = rate
        self.debiased = debiased
        self.num_steps = 0

    def update(self, network: nn.Module) -> None:
        self.num_steps += 1
        reshard(self.network)
        update_average(self.network, network, rate=self.rate_now)

    @property
    def rate_now(self) -> float:
        """r of the last step."""
        forgotten = self.rate**self.num_steps if self.debiased else 0.0
        return (self.rate - forgotten) / (1.0 - forgotten)

    def save(self, folder: Path, group: Group = ALONE) -> None:
        state = whole_state(self.network, group)
        if state is not None:
            save_network(self.network, folder, state)

    def load(self, folder: Path, *, num_steps: int) -> None:
        restore_whole(self.network, folder)
        self.num_steps = num_steps


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, *, rate: float) -> None:
    """average = rate * average + (1 - rate) * network, of every parameter.

    At 0.8 it is the rollout policy of SeqGAN's code, which copies the embedding outright where this averages it.
    Raises ValueError for a rate outside [0, 1].
    """
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"rate={rate} must lie between 0 and 1")
    for slow, fast in zip(average.parameters(), network.parameters(), strict=True):
        local(slow).lerp_(local(fast), 1.0 - rate)
