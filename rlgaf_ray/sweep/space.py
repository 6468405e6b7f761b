"""Check a sweep's search space before anything is loaded; without Ray, so that errors appear at once."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import getitem
from typing import Any

from rlgaf_ray.config import Config, ConfigError, with_values
from rlgaf_ray.config.compose import leaves
from rlgaf_ray.config.explain import short
from rlgaf_ray.config.sweep import Domain

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
    "run.seed",
    "task",
    "model",
    "warmup",
    "learner.precision",
    "discriminator.pooling",
    "discriminator.architecture",
    "discriminator.question",
    "discriminator.verdicts",
    "discriminator.match_lengths",
    "discriminator.view",
    "discriminator.view_tokens",
)
# The same, in trials whose discriminator reads samples of the base model, which are a warm-up too.
DECIDE_CONTRAST = (
    "discriminator.contrast_samples",
    "rollout.temperature",
    "rollout.top_p",
    "rollout.top_k",
    "rollout.stop_at_end_of_text",
)
# These decide whether it reads them.
READ_CONTRAST = ("discriminator.contrast", "discriminator.contrast_weight", "discriminator.loss")
# A checkpoint has optimiser groups, averages and positions in the data for these.
IN_CHECKPOINT = (
    "discriminator.contrast",
    "discriminator.frozen_layers",
    "discriminator.held_out",
    "discriminator.loss",
    "generator.algorithm",
    "generator.average_decay",
    "rollout.free_prompts",
)
TOGETHER = (
    "list values that fit together as one value of their section, such as rollout: "
    "{grid: [{batch_size: 32, samples_per_prompt: 8}, {batch_size: 64, samples_per_prompt: 64}]}"
)
EXAMPLE = "discriminator.updates_per_generator_update: {grid: [0.1, 0.2, 0.5]}"


def check_sweep(config: Config) -> None:
    """Raise ``ConfigError`` for a search that cannot run; validates every listed value and both bounds of a range."""
    sweep = config.sweep
    if not sweep.space:
        raise ConfigError(f"sweep.space is empty: name at least one key to vary, such as {EXAMPLE}")
    for key, domain in sweep.space.items():
        for leaf in sorted(_leaves(key, domain)):
            if _is_in(leaf, FIXED):
                raise ConfigError(f"sweep.space.{key}: {leaf} must be the same for all trials of a sweep")
        if domain.bounds and _is_in(key, DECIDE_WARMUP):
            raise _unlisted(key)
        for value in domain.bounds or domain.values:
            _check_value(config, key, value, sampled=domain.bounds is not None)
    fixed: tuple[str, ...] = (*DECIDE_WARMUP, *IN_CHECKPOINT)
    if any(map(_samples_base_model, warmup_variants(config))):
        fixed += DECIDE_CONTRAST
        for key, domain in sweep.space.items():
            if domain.bounds and key in DECIDE_CONTRAST:
                raise _unlisted(key)
    if sweep.scheduler == "pbt":
        for key in sweep.pbt.mutate or sweep.space:
            for leaf in sorted(_leaves(key, sweep.space[key])):
                if _is_in(leaf, fixed):
                    raise ConfigError(
                        f"sweep.pbt.mutate: {leaf} cannot change when a trial continues from another's checkpoint: "
                        "list only other keys in sweep.pbt.mutate"
                    )
    _check_early_stops(config)
    if sweep.searcher == "optuna" and importlib.util.find_spec("optuna") is None:
        raise ConfigError('sweep.searcher=optuna needs a package that is not installed: pip install -e ".[tune]"')


def _unlisted(key: str) -> ConfigError:
    return ConfigError(
        f"sweep.space.{key}: {key} changes the warm-up, which runs before the trials: list its values as grid or choice"
    )


def combined(config: Config, combinations: Sequence[Mapping[str, Any]]) -> list[Config]:
    """Return the config of each combination of values. Raises ``ConfigError`` that counts and names invalid ones."""
    valid, refused = [], []
    for values in combinations:
        try:
            valid.append(with_values(config, values))
        except ConfigError as error:
            refused.append((values, error))
    if refused:
        values, why = refused[0]
        shown = ", ".join(f"{key}={short(value)}" for key, value in values.items())
        raise ConfigError(
            f"sweep.space: {len(refused)} of {len(combinations)} combinations are invalid, such as {shown}: {why}; "
            f"{TOGETHER}"
        )
    return valid


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
        if any(f" {other}" in str(error) for other in config.sweep.space if other != key):
            hint = f"; {TOGETHER}"
        raise ConfigError(f"sweep.space: {error}{hint}") from None


def _check_early_stops(config: Config) -> None:
    sweep, iterations = config.sweep, config.run.iterations
    if config.guard.heals and config.evaluation.every == 0:
        raise ConfigError(
            "guard.action=heal rolls a trial back to a checkpoint, and trials write theirs at evaluations: set "
            f"evaluation.every below run.iterations={iterations}"
        )
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
    if sweep.scheduler == "pbt" and config.evaluation.every > sweep.pbt.every:
        raise ConfigError(
            f"sweep.pbt.every={sweep.pbt.every} is below evaluation.every={config.evaluation.every}, and trials are "
            "compared at evaluations only: lower evaluation.every or raise sweep.pbt.every"
        )


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
    sections = (*DECIDE_WARMUP, *DECIDE_CONTRAST, *READ_CONTRAST)
    deciding = {
        key: domain.bounds or domain.values
        for key, domain in config.sweep.space.items()
        if _is_in(key, sections) or any(_is_in(section, (key,)) for section in sections)
    }
    combinations = [dict(zip(deciding, values, strict=True)) for values in itertools.product(*deciding.values())]
    variants: dict[str, Config] = {}
    for variant in combined(config, combinations):
        variants.setdefault(_warmup(variant), variant)
    return [*variants.values()]


def _warmup(config: Config) -> str:
    """Return the settings that decide the warm-ups of a run; equal ones mean the same warm-ups."""
    tree, sampled = config.model_dump(mode="json"), _samples_base_model(config)
    keys = DECIDE_WARMUP + DECIDE_CONTRAST if sampled else DECIDE_WARMUP
    return repr((sampled, [reduce(getitem, key.split("."), tree) for key in keys]))


def _samples_base_model(config: Config) -> bool:
    return config.discriminator.contrast_read == "base_model"


def short_names(keys: list[str]) -> dict[str, str]:
    """Shorten each key to the fewest trailing parts that distinguish it from the others."""
    names = {}
    for key in keys:
        parts = key.split(".")
        ends = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        others = [other for other in keys if other != key]
        names[key] = next((end for end in ends if not any(f".{other}".endswith(f".{end}") for other in others)), key)
    return names


def _leaves(key: str, domain: Domain) -> set[str]:
    """Return the dotted keys that a domain changes: several if its values are sections."""
    return {".".join((key, *place)) for value in domain.values or [None] for place, _ in leaves(value)}


def _is_in(key: str, sections: tuple[str, ...]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)
