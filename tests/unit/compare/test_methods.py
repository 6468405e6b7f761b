"""The config changes of each comparison method."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from rlgaf_ray.compare.budget import num_rollouts
from rlgaf_ray.compare.configs import method_config, method_of
from rlgaf_ray.compare.methods import METHODS
from rlgaf_ray.config import Config, load_config
from rlgaf_ray.config.compare import BuiltInMethod
from rlgaf_ray.errors import UserError

EXPERIMENTS = Path(__file__).parents[3] / "experiments" / "bridge"


def config(*overrides: str) -> Config:
    return load_config(None, ["run.iterations=60", "rollout.batch_size=32", "task.name=bridge", *overrides])


@pytest.mark.parametrize("name", get_args(BuiltInMethod))
def test_every_method_works_with_the_same_demonstrations_and_seed(name: BuiltInMethod) -> None:
    assert name in METHODS
    found = method_config(config(), name, 7)
    assert (found.run.seed, found.task.draw_seed) == (7, 7)
    same = {"draw_seed": None, "bridge": config().task.bridge}  # hindsight changes the base walks
    assert found.task.model_copy(update=same) == config().task


def test_rejection_has_as_many_rollouts_in_few_rounds() -> None:
    plain, rejection = (method_config(config(), name, 0) for name in ("rlgaf", "rejection"))
    assert rejection.run.iterations == 6 and rejection.rollout.batch_size == 320
    assert num_rollouts(plain, METHODS["rlgaf"]) - num_rollouts(plain, METHODS["best_of_4"]) == 1920
    assert rejection.run.iterations * rejection.rollout.batch_size == 1920
    assert method_config(config("compare.rejection_rounds=3"), "rejection", 0).rollout.batch_size == 640
    assert rejection.discriminator_warmup_rollouts == plain.discriminator_warmup_rollouts == 32


def test_frozen_and_zero_reward_change_only_discriminator_and_reward() -> None:
    plain, frozen, zero = (method_config(config(), name, 0) for name in ("rlgaf", "frozen", "zero_reward"))
    assert frozen.discriminator.updates_per_generator_update == 0
    assert frozen.warmup == plain.warmup and frozen.generator == plain.generator
    assert zero.generator == plain.generator and zero.discriminator_warmup_updates == 0
    assert zero.reward.kind == "zero"


def test_hindsight_relabels_the_walks_of_the_bridge_alone() -> None:
    assert method_config(config(), "hindsight", 0).task.bridge.base_goals == "last"
    with pytest.raises(UserError, match="hindsight does not work with this config: it relabels walks"):
        method_config(load_config(None), "hindsight", 0)


def test_the_reward_model_is_trained_on_labels_and_then_frozen() -> None:
    found = method_config(config(), "reward_model", 0)
    assert found.discriminator_warmup_updates == 0 and found.warmup.discriminator.type == "labels"
    assert found.discriminator.updates_per_generator_update == 0 and not found.discriminator.needs.contrast


def test_a_method_that_the_config_does_not_support_is_named() -> None:
    with pytest.raises(UserError, match=r"compare.methods: gad does not work with this config: .*samples_per_prompt"):
        method_config(config("rollout.samples_per_prompt=1"), "gad", 0)


def test_the_baseline_is_one_of_the_methods() -> None:
    with pytest.raises(UserError, match=r"compare.baseline=sft is not in compare.methods"):
        config("compare.methods=[rlgaf]")


PPO = "compare.variants.ppo.keys={generator.algorithm: ppo}"


def test_a_variant_is_a_built_in_method_with_other_keys() -> None:
    more = ["compare.variants.three={method: rejection, keys: {compare.rejection_rounds: 3, generator.raft.epochs: 7}}"]
    base = config(PPO, *more, "compare.methods=[sft, ppo, three, rlgaf]")
    ppo, three = (method_config(base, name, 5) for name in ("ppo", "three"))
    assert (ppo.generator.algorithm, ppo.run.seed) == ("ppo", 5)
    assert three.run.iterations == 3 and three.rollout.batch_size == 640  # the keys come before the method's own
    assert three.generator.raft.epochs == 7  # and replace them
    longer = config("compare.variants.longer={method: rejection, keys: {run.iterations: 120}}")
    assert method_config(longer, "longer", 0).rollout.batch_size == 640  # 120 x 32 rollouts in 6 rounds
    assert method_config(longer, "longer", 0).run.iterations == 6
    steps = config("compare.variants.s={method: sft, keys: {warmup.sft.steps: 7}}", "compare.sft_steps=[5, 6]")
    assert method_of(steps, "s").sft_steps(method_config(steps, "s", 0)) == [7]
    assert method_config(base, "rlgaf", 5).generator.algorithm == "reinforce"
    assert method_of(base, "three").title == "three" and method_of(base, "three").source == METHODS["rejection"].source


@pytest.mark.parametrize(
    ("override", "named"),
    [
        (
            "compare.methods=[sft, pppo]",
            "compare.methods has no method 'pppo': choose from base, sft, .*, ppo, or",
        ),
        ("compare.variants.sft.method=rlgaf", "compare.variants.sft has the name of a built-in method"),
        ("compare.variants={a/b: {}}", "compare.variants.'a/b' is part of a file name"),
        ("compare.variants.b.method=rlhf", "compare.variants.b.method"),
    ],
)
def test_a_wrong_variant_is_named(override: str, named: str) -> None:
    with pytest.raises(UserError, match=named):
        config(PPO, override)


@pytest.mark.parametrize("key", ["run.seed", "task.draw_seed", "rollout.engine", "tracking.to"])
def test_a_variant_cannot_change_what_all_methods_share(key: str) -> None:
    base = config(f"compare.variants.b.keys={{{key}: 3}}", "compare.methods=[sft, b]")
    with pytest.raises(UserError, match=f"compare.variants.b.keys: {key} is the same for all methods: remove it"):
        method_config(base, "b", 0)


def test_a_wrong_key_of_a_variant_is_named() -> None:
    base = config("compare.variants.b.keys.generator.algorithn=ppo", "compare.methods=[sft, b]")
    with pytest.raises(UserError, match=r"compare.methods: b does not work with this config: .*generator.algorithn"):
        method_config(base, "b", 0)


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda path: path.name)
def test_the_configs_of_the_experiments_define_all_their_methods(path: Path) -> None:
    settings = load_config(path)
    for name in settings.compare.methods:
        method_config(settings, name, 0)
