"""Detection of non-finite metrics, and of those that a skipped optimiser step explains."""

from __future__ import annotations

import math

from rlgaf_ray.types import Metrics

OF_A_SKIPPED_STEP = {  # prefixes of metrics that may be non-finite if a step of this network was skipped
    "generator": ("generator/", "reward/", "rollout/reference_nll"),
    "discriminator": ("discriminator/",),
}


def not_finite(metrics: Metrics) -> str:
    """List the non-finite metrics, for a message; empty without any."""
    return ", ".join(f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value))


def skipped_steps(metrics: Metrics) -> float:
    """Count the steps of both networks skipped in this iteration for a non-finite gradient or reward."""
    return sum(metrics.get(f"{network}/skipped_steps", 0.0) for network in OF_A_SKIPPED_STEP)


def broken(metrics: Metrics) -> bool:
    """Whether a metric is non-finite for another reason than a skipped step, such as non-finite weights."""
    explained = tuple(
        prefix
        for network, prefixes in OF_A_SKIPPED_STEP.items()
        if metrics.get(f"{network}/skipped_steps", 0.0) > 0
        for prefix in prefixes
    )
    return any(
        not math.isfinite(value) and (name == "generator/weight_norm" or not name.startswith(explained))
        for name, value in metrics.items()
    )
