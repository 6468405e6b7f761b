from __future__ import annotations

import pytest

from rlgaf_ray.loop.adversarial import updates_due
from rlgaf_ray.loop.guard import examine


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (0.2, [0, 0, 0, 0, 1, 0, 0, 0, 0, 1]),
        (1, [1] * 10),
        (3, [3] * 10),
        (0, [0] * 10),
        (1.5, [1, 2, 1, 2, 1, 2, 1, 2, 1, 2]),
        (0.3, [0, 0, 0, 1, 0, 0, 1, 0, 0, 1]),
    ],
)
def test_updates_due(rate: float, expected: list[int]) -> None:
    assert [updates_due(iteration, rate) for iteration in range(1, 11)] == expected


def test_any_rate_is_kept_over_a_long_run() -> None:
    for rate in (0.05, 0.1, 0.2, 0.7, 2.4):
        assert sum(updates_due(iteration, rate) for iteration in range(1, 1001)) == round(1000 * rate)


def test_the_guard_names_what_is_not_finite() -> None:
    assert examine({"generator/loss": 1.0}).kind == "healthy"
    verdict = examine({"generator/loss": float("nan"), "reward/mean": 0.5, "generator/kl": float("inf")})
    assert verdict.kind == "non_finite"
    assert verdict.evidence == "generator/loss is nan, generator/kl is inf"
