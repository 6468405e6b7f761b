"""Seeds of rollouts: pure, wide, and unrelated for neighbours."""

from __future__ import annotations

from itertools import product

import numpy as np

from rlgaf_ray.engines.seeds import rollout_seed


def test_a_seed_is_a_fixed_number() -> None:
    # Written down once: another value would silently change every run that is resumed or repeated.
    assert rollout_seed(0, 0, 0) == 4808561972376111626
    assert rollout_seed(1, 2, 3) == 1138364116778193076


def test_every_argument_counts_and_their_order_too() -> None:
    seeds = {rollout_seed(*arguments) for arguments in product(range(12), repeat=3)}
    assert len(seeds) == 12**3


def test_all_63_bits_are_used_evenly() -> None:
    seeds = np.array([rollout_seed(0, 0, index) for index in range(4000)], np.uint64)
    bits = (seeds[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    shares = bits.mean(0)
    assert shares[63] == 0
    np.testing.assert_allclose(shares[:63], 0.5, atol=0.04)
    flipped = (bits[1:] != bits[:-1]).mean()
    np.testing.assert_allclose(flipped, 0.5 * 63 / 64, atol=0.005)
