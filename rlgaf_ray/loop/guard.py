"""The guard looks at metrics and returns a verdict; what is done about it is the loop's and the config's affair."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from rlgaf_ray.types import Metrics


@dataclass(frozen=True, slots=True)
class Verdict:
    kind: Literal["healthy", "non_finite"]
    evidence: str = ""


class TrainingStopped(Exception):
    """The guard ended the run: one sentence that says why, and what is left to go on from."""


def examine(metrics: Metrics) -> Verdict:
    """``non_finite`` names every metric that is not a number or is infinite."""
    culprits = {name: value for name, value in metrics.items() if not math.isfinite(value)}
    if not culprits:
        return Verdict("healthy")
    return Verdict("non_finite", ", ".join(f"{name} is {value}" for name, value in culprits.items()))
