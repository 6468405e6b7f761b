"""Random draws of one update: they depend on the run's seed and the update's number alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def update_generator(seed: int, update: int, *, stream: int = 0) -> np.random.Generator:
    """NumPy's generator for one update; another ``stream`` draws apart from the others of the update."""
    return np.random.default_rng([seed, update, stream] if stream else [seed, update])


@contextmanager
def seeded(seed: int, update: int, device: torch.device, *, rank: int = 0) -> Iterator[None]:
    """torch's random state inside; outside nothing has been drawn.

    So runs in one process and on actors draw alike, and a resumed run as an uninterrupted one. Ranks of a group draw
    apart.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        entropy = [seed, update, rank] if rank else [seed, update]
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))
        yield
