"""Rollout seeds: deterministic, well spread, unrelated for adjacent arguments."""

from __future__ import annotations

from itertools import product

import numpy as np

from rlgaf_ray.engines.seeds import rollout_seed


def test_seeds_are_stable() -> None:
    # Golden value: a change would silently alter every resumed or repeated run.
    assert rollout_seed(0, 0, 0) == 4808561972376111626
    assert rollout_seed(1, 2, 3) == 1138364116778193076


def test_a_seed_depends_on_every_argument_and_their_order() -> None:
    seeds = {rollout_seed(*arguments) for arguments in product(range(12), repeat=3)}
    assert len(seeds) == 12**3


def test_all_63_bits_are_uniform() -> None:
    seeds = np.array([rollout_seed(0, 0, index) for index in range(4000)], np.uint64)
    bits = (seeds[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    shares = bits.mean(0)
    assert shares[63] == 0
    np.testing.assert_allclose(shares[:63], 0.5, atol=0.04)
    flipped = (bits[1:] != bits[:-1]).mean()
    np.testing.assert_allclose(flipped, 0.5 * 63 / 64, atol=0.005)
