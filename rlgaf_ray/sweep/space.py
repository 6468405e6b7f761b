"""Check a sweep's search space before anything is loaded; without Ray, so that errors appear at once."""

from __future__ import annotations

import importlib.util
import itertools
from typing import Any

from rlgaf_ray.config import Config, ConfigError, with_values

# Keys that the sweep sets itself or that all trials must share.
FIXED = (
    "run.name",
    "run.root",
    "run.iterations",
    "rollout.num_workers",
    "warmup.cache",
    "warmup.num_workers",
    "evaluation",
    "checkpoint",
    "tracking",
    "cluster",
    "sweep",
)
# Each value of these keys needs its own warm-up; all warm-ups run before the first trial.
DECIDE_WARMUP = (
    "task",
    "model",
    "warmup",
    "learner.precision",
    "discriminator.pooling",
    "discriminator.architecture",
    "discriminator.question",
    "discriminator.verdicts",
)
EXAMPLE = "discriminator.updates_per_generator_update: {grid: [0.1, 0.2, 0.5]}"


def check_sweep(config: Config) -> None:
    """Raise ``ConfigError`` for a search that cannot run; validates every listed value and both bounds of a range."""
    sweep = config.sweep
    if not sweep.space:
        raise ConfigError(f"sweep.space is empty: name at least one key to vary, such as {EXAMPLE}")
    for key, domain in sweep.space.items():
        if _is_in(key, FIXED):
            raise ConfigError(f"sweep.space.{key}: {key} must be the same for all trials of a sweep")
        if domain.bounds and _is_in(key, DECIDE_WARMUP):
            raise ConfigError(
                f"sweep.space.{key}: {key} changes the warm-up, which runs before the trials: list its values as grid "
                "or choice"
            )
        for value in domain.bounds or domain.values:
            _check_value(config, key, value, sampled=domain.bounds is not None)
    _check_early_stops(config)
    if sweep.searcher == "optuna" and importlib.util.find_spec("optuna") is None:
        raise ConfigError('sweep.searcher=optuna needs a package that is not installed: pip install -e ".[tune]"')


def single_variants(config: Config) -> list[Config]:
    """Return one config per listed value and per bound, each with a single key changed."""
    return [
        with_values(config, {key: value})
        for key, domain in config.sweep.space.items()
        for value in domain.bounds or domain.values
    ]


def _check_value(config: Config, key: str, value: Any, *, sampled: bool) -> None:
    try:
        with_values(config, {key: value})
    except ConfigError as error:
        needs_integer = sampled and str(error).endswith("must be a valid integer")
        hint = " (values sampled from a range are not integers: list them as grid or choice)" if needs_integer else ""
        raise ConfigError(f"sweep.space: {error}{hint}") from None


def _check_early_stops(config: Config) -> None:
    sweep, iterations = config.sweep, config.run.iterations
    if sweep.scheduler == "none":
        return
    if not 0 < config.evaluation.every < iterations:
        raise ConfigError(
            f"sweep.scheduler={sweep.scheduler} decides at evaluations, but evaluation.every={config.evaluation.every} "
            f"has none before the end of run.iterations={iterations}: lower it, or set sweep.scheduler=none"
        )
    if grace(config) >= iterations:
        raise ConfigError(
            f"sweep.grace={grace(config)} is not below run.iterations={iterations}, so no trial is stopped: lower it"
        )
    if sweep.scheduler == "pbt" and num_trials(config) < 2:
        raise ConfigError("sweep.scheduler=pbt needs a population: set sweep.num_samples to 2 or more")


def grace(config: Config) -> int:
    """Return the iterations before a scheduler may stop a trial."""
    return config.sweep.grace or max(1, config.run.iterations // 3)


def num_trials(config: Config) -> int:
    """Return the number of trials: the product of the grids times ``sweep.num_samples``."""
    count = config.sweep.num_samples
    for domain in config.sweep.space.values():
        count *= len(domain.grid or [None])
    return count


def warmup_variants(config: Config) -> list[Config]:
    """Return one config for every warm-up that a trial may start from."""
    deciding = {key: domain.values for key, domain in config.sweep.space.items() if _is_in(key, DECIDE_WARMUP)}
    combinations = itertools.product(*deciding.values())
    return [with_values(config, dict(zip(deciding, values, strict=True))) for values in combinations]


def short_names(keys: list[str]) -> dict[str, str]:
    """Shorten each key to the fewest trailing parts that distinguish it from the others."""
    names = {}
    for key in keys:
        parts = key.split(".")
        ends = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        others = [other for other in keys if other != key]
        names[key] = next((end for end in ends if not any(f".{other}".endswith(f".{end}") for other in others)), key)
    return names


def _is_in(key: str, sections: tuple[str, ...]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)
