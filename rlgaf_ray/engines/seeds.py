"""Per-rollout seeds, independent of the worker and batch that sample the rollout."""

from __future__ import annotations

from hashlib import blake2b

EVALUATION = 2**31 - 1
"""Iteration number for the seeds of evaluation samples: the same in every evaluation, distinct from training."""

WARMUP = 2**30
"""Offset of the update number in the seeds of the discriminator warm-up."""


def rollout_seed(run_seed: int, iteration: int, index: int) -> int:
    """Hash the run seed, the iteration and the rollout's index within it to a 63-bit seed.

    Adjacent arguments give unrelated seeds. The value does not depend on the process, platform or Python's hash seed.
    """
    digest = blake2b(f"{run_seed}/{iteration}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
