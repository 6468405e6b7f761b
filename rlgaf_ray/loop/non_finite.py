"""Finds metrics that are not finite, and those that a skipped optimiser step accounts for."""

from __future__ import annotations

import math

from rlgaf_ray.types import Metrics

OF_A_SKIPPED_STEP = {  # metrics that need not be finite where a step of this network was skipped
    "generator": ("generator/", "reward/", "rollout/reference_nll"),
    "discriminator": ("discriminator/",),
}


def not_finite(metrics: Metrics) -> str:
    """Names every metric that is not a number or is infinite; empty where there is none."""
    return ", ".join(f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value))


def skipped_steps(metrics: Metrics) -> float:
    """Steps of both networks that were skipped in this iteration, for a gradient or reward that was not finite."""
    return sum(metrics.get(f"{network}/skipped_steps", 0.0) for network in OF_A_SKIPPED_STEP)


def broken(metrics: Metrics) -> bool:
    """Something is not finite that a skipped step does not account for: the weights after it, or whatever else."""
    accounted = tuple(
        prefix
        for network, prefixes in OF_A_SKIPPED_STEP.items()
        if metrics.get(f"{network}/skipped_steps", 0.0) > 0
        for prefix in prefixes
    )
    return any(
        not math.isfinite(value) and (name == "generator/weight_norm" or not name.startswith(accounted))
        for name, value in metrics.items()
    )
