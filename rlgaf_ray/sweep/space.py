"""What of a sweep can be known to fail before anything is loaded. Without Ray: a wrong space is told at once."""

from __future__ import annotations

import importlib.util
import itertools
from typing import Any

from rlgaf_ray.config import Config, ConfigError, with_values

# The sweep itself decides these, or every trial must share them.
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
# A value of these asks for a warm-up of its own; all are made before the first trial.
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
    """Raise ``ConfigError`` for a search that cannot run: every listed value and both bounds go through the schema."""
    sweep = config.sweep
    if not sweep.space:
        raise ConfigError(f"sweep.space is empty: name at least one key to vary, such as {EXAMPLE}")
    for key, domain in sweep.space.items():
        if _lies_in(key, FIXED):
            raise ConfigError(f"sweep.space.{key}: {key} is the same for all trials of a sweep")
        if domain.bounds and _lies_in(key, DECIDE_WARMUP):
            raise ConfigError(
                f"sweep.space.{key}: {key} decides the warm-up, which is made before the trials: list values as grid "
                "or choice"
            )
        for value in domain.bounds or domain.values:
            _check_value(config, key, value, drawn=domain.bounds is not None)
    _check_early_stops(config)
    if sweep.searcher == "optuna" and importlib.util.find_spec("optuna") is None:
        raise ConfigError('sweep.searcher=optuna needs a package that is not here: pip install -e ".[tune]"')


def single_variants(config: Config) -> list[Config]:
    """The config with each listed value and each bound by itself."""
    return [
        with_values(config, {key: value})
        for key, domain in config.sweep.space.items()
        for value in domain.bounds or domain.values
    ]


def _check_value(config: Config, key: str, value: Any, *, drawn: bool) -> None:
    try:
        with_values(config, {key: value})
    except ConfigError as error:
        whole = drawn and str(error).endswith("must be a valid integer")
        hint = " (draws between bounds have fractions: list values as grid or choice)" if whole else ""
        raise ConfigError(f"sweep.space: {error}{hint}") from None


def _check_early_stops(config: Config) -> None:
    sweep, iterations = config.sweep, config.run.iterations
    if sweep.scheduler == "none":
        return
    if not 0 < config.evaluation.every < iterations:
        raise ConfigError(
            f"sweep.scheduler={sweep.scheduler} decides at evaluations, and evaluation.every={config.evaluation.every} "
            f"makes none before the end of run.iterations={iterations}: lower it, or set sweep.scheduler=none"
        )
    if grace(config) >= iterations:
        raise ConfigError(
            f"sweep.grace={grace(config)} leaves nothing to stop of run.iterations={iterations}: lower it"
        )
    if sweep.scheduler == "pbt" and num_trials(config) < 2:
        raise ConfigError("sweep.scheduler=pbt needs a population: set sweep.num_samples to 2 or more")


def grace(config: Config) -> int:
    """Iterations before a scheduler may touch a trial."""
    return config.sweep.grace or max(1, config.run.iterations // 3)


def num_trials(config: Config) -> int:
    count = config.sweep.num_samples
    for domain in config.sweep.space.values():
        count *= len(domain.grid or [None])
    return count


def warmup_variants(config: Config) -> list[Config]:
    """One config for every warm-up that some trial starts from."""
    deciding = {key: domain.values for key, domain in config.sweep.space.items() if _lies_in(key, DECIDE_WARMUP)}
    combinations = itertools.product(*deciding.values())
    return [with_values(config, dict(zip(deciding, values, strict=True))) for values in combinations]


def short_names(keys: list[str]) -> dict[str, str]:
    """Each key by its last words, as many as tell it from the others."""
    names = {}
    for key in keys:
        parts = key.split(".")
        ends = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        others = [other for other in keys if other != key]
        names[key] = next((end for end in ends if not any(f".{other}".endswith(f".{end}") for other in others)), key)
    return names


def _lies_in(key: str, places: tuple[str, ...]) -> bool:
    return any(key == place or key.startswith(f"{place}.") for place in places)
