"""The config of each method of a comparison, on each replicate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import cast

from rlgaf_ray.compare.methods import METHODS, Keys, Method
from rlgaf_ray.config import Config, with_values
from rlgaf_ray.config.compare import BuiltInMethod, MethodName
from rlgaf_ray.errors import UserError

IN_ONE_PROCESS: Keys = {"rollout.engine": "transformers", "cluster.threads": 1}
FIXED = ("run.seed", "task.draw_seed", "tracking", "sweep", *IN_ONE_PROCESS)  # keys that no variant can change
INPUTS = {"run.iterations", "rollout.batch_size"}  # a variant's value is what a method derives its own from


def method_of(config: Config, name: MethodName) -> Method:
    """Return a built-in method, or a variant of one (``compare.variants``)."""
    variant = config.compare.variants.get(name)
    if variant is None:
        return METHODS[cast(BuiltInMethod, name)]
    built_in, keys = METHODS[variant.method], dict(variant.keys)
    if fixed := sorted(key for key in keys if any(key == each or key.startswith(f"{each}.") for each in FIXED)):
        raise UserError(f"compare.variants.{name}.keys: {fixed[0]} is the same for all methods: remove it")
    if "warmup.sft.steps" in keys:
        keys = {"compare.sft_steps": [], **keys}

    def all_keys(config: Config) -> Keys:
        derived = built_in.keys(with_values(config, keys))
        return {**derived, **{key: value for key, value in keys.items() if key not in INPUTS & derived.keys()}}

    return replace(built_in, title=name, keys=all_keys)


def method_config(config: Config, name: MethodName, replicate: int, *, in_one_process: bool = True) -> Config:
    """Return the config of one method on one replicate.

    ``in_one_process``: run all roles in one process on one thread; without it keep the config's engines, for a plan.
    Raises ``UserError`` if the config does not support the method.
    """
    method = method_of(config, name)
    values = {
        "run.seed": replicate,
        **(IN_ONE_PROCESS if in_one_process else {}),
        "task.draw_seed": replicate,
        "tracking.to": [],
        "tracking.rollout_share": 0.0,
        "sweep": {},
    }
    if not method.scores:  # the labelled warm-up of a discriminator that nothing reads
        values["warmup.discriminator.steps"] = 0
    with named(name, "this config"):
        seeded = with_values(config, values)
        return with_values(seeded, {**method.keys(seeded), **values})


@contextmanager
def named(name: MethodName, what: str) -> Iterator[None]:
    """Prefix a ``UserError`` with the method that ``what`` does not support."""
    try:
        yield
    except UserError as error:
        raise UserError(f"compare.methods: {name} does not work with {what}: {error}") from error
