"""The seed of one rollout: the same wherever and with whatever company it is sampled."""

from __future__ import annotations

from hashlib import blake2b

EVALUATION = 2**31 - 1
"""Stands for the iteration in the seeds of evaluation samples: the same draws every time, apart from training's."""

WARMUP = 2**30
"""Added to the update's number in the seeds of the discriminator's warm-up."""


def rollout_seed(run_seed: int, iteration: int, index: int) -> int:
    """Mix the run's seed, the iteration and the rollout's index within it into 63 well-spread bits.

    Neighbouring arguments give unrelated seeds, so the streams of two rollouts never overlap by design of the
    numbering. The value depends on the arguments alone: not on the process, the platform or Python's hash seed.
    """
    digest = blake2b(f"{run_seed}/{iteration}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
