"""Number of discriminator updates per generator update: fixed, or controlled to keep an accuracy in a band.

Adaptive, once an iteration, with the held-out accuracy a_t and its exponential moving average m_t::

    e_t = (m_t - middle of the band) / half its width
    log rate <- log rate - step * clip(e_t + LEAD * (e_t - e_(t-1)), -1, 1)      within [minimum, maximum]

A discriminator whose accuracy is too high is trained less. The accuracy responds to the rate with a lag of tens of
iterations, so the proportional term alone would oscillate; the derivative term damps that. At its bounds the rate
saturates: if the accuracy is below the band at the maximum, this controller cannot raise it.
"""

from __future__ import annotations

import math
from typing import Any

from rlgaf_ray.config.discriminator import UpdateRatioSection

SLACK = 1e-9  # absorbs rounding, so that 5 * 0.2 counts as 1
DECAY = 0.5  # of the moving average; a reading, itself a mean over iterations, has a standard error of about 0.025
LEAD = 10.0  # look-ahead of the derivative term, in iterations


class UpdateRatio:
    """Counts due discriminator updates; ``rate``: updates per generator update, with fractions kept as credit."""

    def __init__(self, rate: float, settings: UpdateRatioSection) -> None:
        self.settings = settings
        self.rate = rate
        self.credit = 0.0
        self.mean: float | None = None

    @property
    def adaptive(self) -> bool:
        return self.settings.mode == "adaptive"

    def due(self) -> int:
        """Return the number of discriminator updates for the next generator update.

        At a fixed rate the total after n calls is floor(n * rate): 0.2 gives one at 5, 10, ...; 3 gives three each.
        """
        self.credit += self.rate
        due = int(self.credit + SLACK)
        self.credit -= due
        return due

    def observe(self, accuracy: float) -> None:
        """Adjust an adaptive rate to the held-out accuracy of an iteration."""
        if not self.adaptive:
            return
        before = accuracy if self.mean is None else self.mean
        self.mean = DECAY * before + (1.0 - DECAY) * accuracy
        low, high = self.settings.band
        half_width = (high - low) / 2
        error, change = (self.mean - low - half_width) / half_width, (self.mean - before) / half_width
        self.move(math.exp(-self.settings.step * min(max(error + LEAD * change, -1.0), 1.0)))

    def move(self, factor: float) -> None:
        """Multiply the rate, clamped to its bounds."""
        self.rate = min(max(self.rate * factor, self.settings.minimum), self.settings.maximum)

    def state_dict(self) -> dict[str, Any]:
        """Return the state; it includes the rate only if adaptive, since a fixed rate is in the config."""
        return {"credit": self.credit, "mean": self.mean, "rate": self.rate if self.adaptive else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.credit, self.mean = state["credit"], state["mean"]
        if self.adaptive and state["rate"] is not None:
            self.rate = state["rate"]
            self.move(1.0)  # clamp to bounds that may have changed since
