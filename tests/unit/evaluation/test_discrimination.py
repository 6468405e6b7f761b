from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from rlgaf_ray.evaluation.discrimination import auc, discrimination, information


def test_auc_is_the_share_of_correctly_ranked_pairs() -> None:
    real, fake = np.array([2.0, 0.5, 1.0]), np.array([0.0, 1.0, 0.7, -1.0])
    pairs = [(a > b) + 0.5 * (a == b) for a, b in itertools.product(real, fake)]
    assert auc(real, fake)[0] == pytest.approx(np.mean(pairs))
    assert auc(fake, real)[0] == pytest.approx(1 - np.mean(pairs))
    assert auc(np.ones(5), np.ones(5)) == (0.5, 0.0)


def test_the_interval_of_the_auc_has_its_nominal_coverage() -> None:
    rng = np.random.default_rng(0)
    truth = 0.5 * (1 + math.erf(0.5 / 2))  # two normals half a deviation apart: Phi(0.5 / sqrt 2)
    found = [auc(rng.normal(0.5, 1, 80), rng.normal(0, 1, 120)) for _ in range(1000)]
    assert np.mean([area for area, _ in found]) == pytest.approx(truth, abs=0.005)
    assert 0.93 < np.mean([abs(area - truth) <= half for area, half in found]) < 0.97


def test_information_is_the_mutual_information_at_any_scale_and_offset() -> None:
    rng = np.random.default_rng(1)
    real, fake = rng.normal(1, 1, 20_000), rng.normal(0, 1, 20_000)
    grid = np.linspace(-8, 9, 20_001)
    densities = [np.exp(-((grid - mean) ** 2) / 2) / math.sqrt(2 * math.pi) for mean in (1, 0)]
    mixture = (densities[0] + densities[1]) / 2
    entropy = [np.trapezoid(-p * np.log(p), grid) for p in (mixture, *densities)]
    expected = entropy[0] - (entropy[1] + entropy[2]) / 2
    nats, half = information(real, fake)
    assert abs(nats - expected) < 1.5 * half < 0.01
    assert information(7 * real - 3, 7 * fake - 3)[0] == pytest.approx(nats, abs=1e-6)
    assert information(real[:100], fake)[0] == pytest.approx(expected, abs=0.05)  # classes have equal weight


def test_uninformative_or_inverted_logits_have_no_information() -> None:
    rng = np.random.default_rng(2)
    same = discrimination(rng.normal(size=1000), rng.normal(size=1000))
    assert abs(same["discriminator/held_out_auc"] - 0.5) < same["discriminator/held_out_auc_interval"] + 0.02
    assert same["discriminator/information"] < same["discriminator/information_interval"] + 1e-3
    assert information(rng.normal(-1, 1, 500), rng.normal(0, 1, 500)) == (0.0, 0.0)
    assert information(np.zeros(50), np.zeros(50))[0] == pytest.approx(0.0, abs=1e-9)
    assert information(np.full(500, 30.0), np.full(500, -30.0))[0] == pytest.approx(math.log(2), abs=1e-3)


def test_non_finite_logits_give_nan() -> None:
    found = discrimination(np.array([0.0, np.nan, 1.0]), np.zeros(3))
    assert len(found) == 4 and all(math.isnan(value) for value in found.values())
