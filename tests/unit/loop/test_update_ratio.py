from __future__ import annotations

import math

import numpy as np
import pytest

from rlgaf_ray.config.discriminator import UpdateRatioSection
from rlgaf_ray.loop.update_ratio import DECAY, LEAD, UpdateRatio

FIXED, ADAPTIVE = UpdateRatioSection(), UpdateRatioSection(mode="adaptive")


def schedule(ratio: UpdateRatio, count: int) -> list[int]:
    return [ratio.due() for _ in range(count)]


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
    assert schedule(UpdateRatio(rate, FIXED), 10) == expected


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.2, 0.3, 1 / 3, 0.7, 1.1, 2.4, 10.0])
def test_a_fixed_rate_gives_the_floor_of_its_multiples_also_after_a_resume(rate: float) -> None:
    whole = UpdateRatio(rate, FIXED)
    expected = np.diff([math.floor(n * rate + 1e-9) for n in range(3001)]).tolist()
    assert schedule(whole, 3000) == expected
    first, second = UpdateRatio(rate, FIXED), UpdateRatio(rate, FIXED)
    done = schedule(first, 1234)
    second.load_state_dict(first.state_dict())
    assert done + schedule(second, 1766) == expected


def test_a_fixed_rate_comes_from_the_config_after_a_resume() -> None:
    before = UpdateRatio(0.5, FIXED)
    before.due()
    after = UpdateRatio(2.0, FIXED)
    after.load_state_dict(before.state_dict())
    after.observe(0.99)
    assert (after.rate, after.credit) == (2.0, 0.5)


def test_steps_by_hand() -> None:
    """Band 0.6 to 0.75: middle 0.675, half-width 0.075."""
    ratio = UpdateRatio(1.0, UpdateRatioSection(mode="adaptive", step=0.1))
    ratio.observe(0.675)  # in the middle: no change
    assert ratio.rate == pytest.approx(1.0)
    ratio.observe(
        0.675 + 0.0075
    )  # the average rises by 0.00075, 0.01 half widths: error 0.01 and LEAD * 0.01 for its rise
    assert ratio.mean == pytest.approx(0.675 + (1 - DECAY) * 0.0075)
    assert ratio.rate == pytest.approx(math.exp(-0.1 * (0.05 + LEAD * 0.05)))
    before = ratio.rate
    ratio.observe(1.0)  # far outside: at most one step
    assert ratio.rate == pytest.approx(before * math.exp(-0.1))
    low = UpdateRatio(1.0, UpdateRatioSection(mode="adaptive", step=0.1))
    low.observe(0.6)  # at the lower edge
    assert low.rate == pytest.approx(math.exp(0.1))


def test_bounds_hold() -> None:
    ratio = UpdateRatio(1.0, UpdateRatioSection(mode="adaptive", minimum=0.5, maximum=1.5, step=1.0))
    for _ in range(5):
        ratio.observe(0.99)
    assert ratio.rate == 0.5
    for _ in range(50):
        ratio.observe(0.5)
    assert ratio.rate == 1.5


def test_the_state_is_restored() -> None:
    readings = np.random.default_rng(0).uniform(0.5, 0.9, 60)
    whole, first, second = (UpdateRatio(0.2, ADAPTIVE) for _ in range(3))
    expected = []
    for reading in readings:
        whole.observe(reading)
        expected.append((whole.due(), whole.rate))
    found = []
    for part in (first, second):
        if part is second:
            second.load_state_dict(first.state_dict())
        for reading in readings[:30] if part is first else readings[30:]:
            part.observe(reading)
            found.append((part.due(), part.rate))
    assert found == expected


@pytest.mark.parametrize("start", [0.05, 0.2, 2.0])
@pytest.mark.parametrize("gain", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("lag", [2, 10, 30, 60])
def test_a_slow_noisy_discriminator_is_held_in_the_band(start: float, gain: float, lag: int) -> None:
    """A simulated one, whose accuracy nears 0.675 + gain * log(rate / 0.5) with this time constant.

    It is read as in a run, 16 rows against 64 an iteration, averaged over 8. No limit cycle: readings of at least four
    in five iterations after the 50th lie in the band, and the rate ends near the 0.5 that holds the middle.
    """
    noise = np.random.default_rng(1)
    ratio = UpdateRatio(start, ADAPTIVE)
    accuracy, seen, readings, rates = 0.5, [], [], []
    for _ in range(300):
        settled = min(max(0.675 + gain * math.log(ratio.rate / 0.5), 0.3), 0.99)
        accuracy += (settled - accuracy) / lag
        seen.append(accuracy + noise.normal(0, 0.067))
        readings.append(float(np.mean(seen[-8:])))
        ratio.observe(readings[-1])
        rates.append(ratio.rate)
    inside = [0.6 <= reading <= 0.75 for reading in readings[50:]]
    assert np.mean(inside) >= 0.8
    assert abs(np.mean(np.log(rates[150:])) - math.log(0.5)) < 0.5


def test_an_accuracy_below_the_band_leaves_the_rate_at_its_maximum() -> None:
    ratio = UpdateRatio(0.2, ADAPTIVE)
    for _ in range(60):
        ratio.observe(0.5)
    assert ratio.rate == ADAPTIVE.maximum
