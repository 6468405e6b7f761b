"""Paired differences of methods over replicates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

RESAMPLES = 2000
LEVEL, POWER = 0.01, 0.8


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences, its 95 % interval and p-value (t test), and their standard deviation."""

    mean: float
    low: float
    high: float
    p: float
    deviation: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Difference:
        """Test one value per replicate. With a single replicate everything but the mean is NaN."""
        array = np.array(values, float)
        mean, count = float(array.mean()), len(array)
        if count < 2:
            return cls(mean, np.nan, np.nan, np.nan, np.nan, count)
        deviation = float(array.std(ddof=1))
        half = float(stats.t.ppf(0.975, count - 1)) * deviation / count**0.5
        p = float(stats.ttest_1samp(array, 0.0).pvalue) if deviation > 0 else float(mean == 0)
        return cls(mean, mean - half, mean + half, p, deviation, count)

    def __str__(self) -> str:
        if self.count < 2:
            return f"{self.mean:+.3f}"
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"

    def detectable(self, count: int) -> float:
        """Return the smallest mean that a two-sided t test at LEVEL detects with power POWER from ``count`` values."""
        critical = stats.t.ppf(1 - LEVEL / 2, count - 1)

        def missed(size: float) -> float:
            return float(stats.nct.cdf(critical, count - 1, size * count**0.5)) - (1 - POWER)

        return float(optimize.brentq(missed, 0.01, 50.0)) * self.deviation


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted by Holm's step-down correction (1979). NaN stays NaN and is not counted as a test."""
    adjusted = [float("nan")] * len(p_values)
    tested = sorted((index for index, p in enumerate(p_values) if not np.isnan(p)), key=lambda index: p_values[index])
    largest = 0.0
    for place, index in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def bootstrap(gaps: Sequence[np.ndarray], seed: int = 0) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean, resampling replicates and, independently, prompts.

    All replicates answer the same prompts, so a drawn prompt counts in every drawn replicate (pigeonhole bootstrap,
    Owen 2007, doi 10.1214/07-AOAS122); drawing each replicate's prompts anew would average away what they share.

    Args:
        gaps: the difference at each prompt, float [prompts], per replicate; the same prompts for all.
    """
    draw, table = np.random.default_rng(seed), np.stack(gaps)
    replicates, prompts = table.shape
    means = []
    for _ in range(RESAMPLES):
        counts = np.bincount(draw.integers(replicates, size=replicates), minlength=replicates)
        weights = np.bincount(draw.integers(prompts, size=prompts), minlength=prompts)
        means.append(counts @ table @ weights / table.size)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
