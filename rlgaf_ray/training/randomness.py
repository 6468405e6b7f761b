"""Random generators of one update, seeded by the run's seed and the update number only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def update_generator(seed: int, update: int, *, stream: int = 0) -> np.random.Generator:
    """Return a NumPy generator for one update; different values of ``stream`` are independent."""
    return np.random.default_rng([seed, update, stream] if stream else [seed, update])


@contextmanager
def seeded(seed: int, update: int, device: torch.device, *, rank: int = 0) -> Iterator[None]:
    """Seed torch inside the context and restore its random state afterwards.

    Makes local runs match runs on actors, and resumed runs match uninterrupted ones. Each rank gets its own stream.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        entropy = [seed, update, rank] if rank else [seed, update]
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))
        yield
