"""How many discriminator updates belong to a generator update: a fixed rate, or one that holds an accuracy in a band.

Adaptive, once an iteration, with the held-out accuracy a_t and its exponential moving average m_t::

    e_t = (m_t - middle of the band) / half its width
    log rate <- log rate - step * clip(e_t + LEAD * (e_t - e_(t-1)), -1, 1)      within [minimum, maximum]

A discriminator that tells too well is trained less. The accuracy answers a change of the rate tens of iterations late:
the first term alone would overshoot and swing, the second, which sees where the average is going, damps that.
At the bounds the rate stays: an accuracy below the band at the maximum cannot be helped by this means.
"""

from __future__ import annotations

import math
from typing import Any

from rlgaf_ray.config.discriminator import UpdateRatioSection

SLACK = 1e-9  # 5 * 0.2 must count as 1 whatever the binary fraction
DECAY = 0.5  # of the moving average: a reading, itself a mean over iterations, has a standard error of about 0.025
LEAD = 10.0  # iterations that the second term looks ahead


class UpdateRatio:
    """``rate``: updates per generator update; what falls short of a whole update is kept as credit."""

    def __init__(self, rate: float, settings: UpdateRatioSection) -> None:
        self.settings = settings
        self.rate = rate
        self.credit = 0.0
        self.mean: float | None = None

    @property
    def adaptive(self) -> bool:
        return self.settings.mode == "adaptive"

    def due(self) -> int:
        """Updates that belong to the next generator update.

        At a fixed rate floor(n * rate) after n calls: 0.2 gives one at 5, 10, ...; 3 gives three each; 0 gives none.
        """
        self.credit += self.rate
        due = int(self.credit + SLACK)
        self.credit -= due
        return due

    def observe(self, accuracy: float) -> None:
        """Move the rate, if it is adaptive, after an iteration with this held-out accuracy."""
        if not self.adaptive:
            return
        before = accuracy if self.mean is None else self.mean
        self.mean = DECAY * before + (1.0 - DECAY) * accuracy
        low, high = self.settings.band
        half = (high - low) / 2
        error, change = (self.mean - low - half) / half, (self.mean - before) / half
        self.move(math.exp(-self.settings.step * min(max(error + LEAD * change, -1.0), 1.0)))

    def move(self, factor: float) -> None:
        """Multiply an adaptive rate, within its bounds."""
        self.rate = min(max(self.rate * factor, self.settings.minimum), self.settings.maximum)

    def state_dict(self) -> dict[str, Any]:
        """A fixed rate is the config's, so only an adaptive one is part of it."""
        return {"credit": self.credit, "mean": self.mean, "rate": self.rate if self.adaptive else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.credit, self.mean = state["credit"], state["mean"]
        if self.adaptive and state["rate"] is not None:
            self.rate = state["rate"]
            self.move(1.0)  # into bounds that were changed since
