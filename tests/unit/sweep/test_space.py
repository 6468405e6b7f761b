"""Errors in a search space are reported in one sentence, before anything is loaded."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from rlgaf_ray.config import Config, ConfigError, load_config, with_values
from rlgaf_ray.main import main
from rlgaf_ray.sweep.space import TOGETHER, check_sweep, grace, num_trials, short_names, warmup_variants

CONFIGS = Path(__file__).parents[3] / "configs"
RATE = "sweep.space.discriminator.updates_per_generator_update.grid=[0.1, 0.2]"


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check_sweep(load_config(None, overrides))
    return str(caught.value)


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ("{generator.learning_rat: {grid: [1]}}",
         "sweep.space: unknown key generator.learning_rat; did you mean generator.learning_rate?"),
        ("{learning_rate.grid: [1]}",
         "sweep.space.learning_rate.grid must have exactly one of grid: [...], choice: [...], "
         "uniform: [low, high], log_uniform: [low, high]"),
        ("{run.seed.x: {grid: [1]}}", "sweep.space: run.seed.x=1: run.seed is a value, not a section"),
        ("{generator.learning_rate: {grid: [1e-4, 0]}}",
         "sweep.space: generator.learning_rate=0: must be greater than 0"),
        ("{generator.learning_rate: {choice: [fast]}}",
         "sweep.space: generator.learning_rate=fast: must be a valid number"),
        ("{generator.learning_rate: {uniform: [-1, 1]}}",
         "sweep.space: generator.learning_rate=-1.0: must be greater than 0"),
        ("{generator.reinforce.baseline_decay: {uniform: [0.5, 1.5]}}",
         "sweep.space: generator.reinforce.baseline_decay=1.5: must be less than or equal to 1"),
        ("{rollout.top_k: {uniform: [1, 5]}}",
         "sweep.space: rollout.top_k=1.0: must be a valid integer (values sampled from a range are not integers: list "
         "them as grid or choice)"),
        ("{generator.learning_rate: {uniform: [2, 1]}}",
         "sweep.space.generator.learning_rate.uniform: the lower bound 2 must be below the upper bound 1"),
        ("{generator.learning_rate: {log_uniform: [0, 1]}}",
         "sweep.space.generator.learning_rate.log_uniform: the lower bound 0 must be above 0"),
        ("{generator.learning_rate: {grid: [1], choice: [1]}}",
         "sweep.space.generator.learning_rate must have exactly one of grid: [...], choice: [...], "
         "uniform: [low, high], log_uniform: [low, high]"),
        ("{generator.learning_rate: {grid: []}}",
         "sweep.space.generator.learning_rate must have exactly one of grid: [...], choice: [...], "
         "uniform: [low, high], log_uniform: [low, high]"),
        ("{run.iterations: {grid: [1, 2]}}",
         "sweep.space.run.iterations: run.iterations must be the same for all trials of a sweep"),
        ("{cluster.threads: {grid: [1, 2]}}",
         "sweep.space.cluster.threads: cluster.threads must be the same for all trials of a sweep"),
        ("{warmup.generator.learning_rate: {uniform: [0.1, 0.2]}}",
         "sweep.space.warmup.generator.learning_rate: warmup.generator.learning_rate changes the warm-up, which runs "
         "before the trials: list its values as grid or choice"),
        ("{run: {grid: [{iterations: 1}]}}",
         "sweep.space.run: run.iterations must be the same for all trials of a sweep"),
        ("{discriminator.view: {grid: [last_tokens]}, discriminator.view_tokens: {grid: [2]}}",
         "sweep.space: discriminator.view=last_tokens needs discriminator.view_tokens: set it to the number of "
         f"tokens; {TOGETHER}"),
        ("{}", "sweep.space is empty: name at least one key to vary, such as "
         "discriminator.updates_per_generator_update: {grid: [0.1, 0.2, 0.5]}"),
    ],
)  # fmt: skip
def test_invalid_search_spaces_are_rejected(space: str, expected: str) -> None:
    assert refusal(f"sweep.space={space}") == expected


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("evaluation.every=0",
         "sweep.scheduler=asha decides at evaluations, but evaluation.every=0 has none before the end of "
         "run.iterations=150: lower it, or set sweep.scheduler=none"),
        ("evaluation.every=150",
         "sweep.scheduler=asha decides at evaluations, but evaluation.every=150 has none before the end of "
         "run.iterations=150: lower it, or set sweep.scheduler=none"),
        ("sweep.grace=150",
         "sweep.grace=150 is not below run.iterations=150, so no trial is stopped: lower it"),
        ("sweep={scheduler: pbt, space: {generator.learning_rate: {choice: [1.0]}}}",
         "sweep.scheduler=pbt needs a population: set sweep.num_samples to 2 or more"),
        ("sweep.metric=loss",
         "sweep.metric=loss is not a metric of a run: use sweep/score or one that starts with rollout/, recovery/, "
         "reward/, generator/, discriminator/, guard/, weights/, eval/, quick/, time/"),
        ("sweep.mode=min",
         "sweep.mode=min would select the worst run, since a higher sweep/score is better: set sweep.mode=max"),
        ("sweep.searcher=optuna",
         "sweep.searcher=optuna does not support grid: use choice for discriminator.updates_per_generator_update"),
        ("sweep.pbt.mutate=[run.seed]", "sweep.pbt.mutate: run.seed is not in sweep.space: add it there, or remove it"),
        ("sweep={scheduler: pbt, num_samples: 2, space: {run.seed: {grid: [0, 1]}}}",
         "sweep.pbt.mutate: run.seed cannot change when a trial continues from another's checkpoint: list only other "
         "keys in sweep.pbt.mutate"),
        ("sweep={scheduler: pbt, num_samples: 2, space: {discriminator: {choice: [{held_out: 0}]}}}",
         "sweep.pbt.mutate: discriminator.held_out cannot change when a trial continues from another's checkpoint: "
         "list only other keys in sweep.pbt.mutate"),
        ("sweep.pbt.quantile=0.6", "sweep.pbt.quantile=0.6: must be less than or equal to 0.5"),
        ("sweep.scheduler=hyperband", "sweep.scheduler=hyperband: must be 'none', 'asha', 'median' or 'pbt'"),
        ("sweep.searcher=ax", "sweep.searcher=ax: must be 'random' or 'optuna'"),
    ],
)  # fmt: skip
def test_invalid_search_settings_are_rejected(override: str, expected: str) -> None:
    assert refusal(RATE, override) == expected


def test_exploits_need_an_evaluation_each() -> None:
    population = (RATE, "sweep.scheduler=pbt", "run.iterations=300")
    assert refusal(*population, "evaluation.every=75") == (
        "sweep.pbt.every=50 is below evaluation.every=75, and trials are compared at evaluations only: lower "
        "evaluation.every or raise sweep.pbt.every"
    )
    check_sweep(load_config(None, [*population, "evaluation.every=50"]))


def test_rollbacks_of_trials_need_evaluations() -> None:
    heal = ("sweep.scheduler=none", "guard.action=heal", "evaluation.every=0", "checkpoint.every=50")
    assert refusal(RATE, *heal) == (
        "guard.action=heal rolls a trial back to a checkpoint, and trials write theirs at evaluations: set "
        "evaluation.every below run.iterations=150"
    )


def test_missing_optuna_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "optuna" else real(name, *rest)
    )
    space = "sweep={searcher: optuna, space: {generator.learning_rate: {log_uniform: [1e-5, 1e-3]}}}"
    assert refusal(space) == 'sweep.searcher=optuna needs a package that is not installed: pip install -e ".[tune]"'
    check_sweep(load_config(None, [space.replace("optuna", "random")]))


def test_command_exits_with_2_and_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rlgaf_ray.main", "tune", "sweep.space.run.sed.grid=[1]"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: sweep.space: unknown key run.sed; did you mean run.seed?\n"


def test_bad_input_fails_before_ray_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr("ray.init", lambda *args, **kwargs: pytest.fail("Ray was started"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("run: {name: run}\n")
    words = ["tune", f"run.root={tmp_path}", "rollout.engine=transformers", "run.name=run"]
    assert main([*words, "--resume"]) == 1
    folder = tmp_path / "run"
    assert capsys.readouterr().err == (
        f"error: nothing to resume: {folder} is not a sweep (it has no tune/tuner.pkl): check run.root and run.name\n"
    )
    assert main([*words, RATE]) == 1
    assert capsys.readouterr().err == (
        f"error: {folder} exists: add --resume to continue that sweep, or choose another run.name\n"
    )
    assert main(["tune", f"run.root={tmp_path}", "run.name=none", "--resume"]) == 2
    assert "nothing to resume" in capsys.readouterr().err
    assert main(["tune", "--print-config"]) == 2
    capsys.readouterr()
    words[-1] = "run.name=new"
    assert main([*words, "sweep.space.task.response_tokens.grid=[28, 300]"]) == 1
    assert "task.prompt_tokens + task.response_tokens = 303" in capsys.readouterr().err
    sizes = "{batch_size: {grid: [32, 64]}, samples_per_prompt: {grid: [8, 64]}}"
    assert main([*words, f"sweep.space.rollout={sizes}"]) == 2
    assert capsys.readouterr().err == (
        "error: sweep.space: 1 of 4 combinations are invalid, such as rollout.batch_size=32, "
        "rollout.samples_per_prompt=64: rollout.batch_size=32 is not divisible by rollout.samples_per_prompt=64; use "
        f"64; {TOGETHER}\n"
    )
    assert not (tmp_path / "new").exists()


def test_overrides_extend_the_space(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("sweep:\n  space:\n    run.seed: {grid: [0, 1]}\n    generator.learning_rate: {grid: [1e-4]}\n")
    space = load_config(path, ["sweep.space.generator.learning_rate.log_uniform=[1e-5, 1e-3]", RATE]).sweep.space
    assert space["run.seed"].values == [0, 1]
    assert space["generator.learning_rate"].bounds == (1e-5, 1e-3)
    assert space["discriminator.updates_per_generator_update"].values == [0.1, 0.2]


def test_counts_and_grace() -> None:
    config = load_config(
        None,
        [RATE, "sweep.space.run.seed.grid=[0, 1, 2]", "sweep.space.reward.kind.choice=[logit]", "sweep.num_samples=2"],
    )
    assert num_trials(config) == 2 * 3 * 2
    assert grace(config) == 50
    assert grace(load_config(None, ["sweep.grace=7"])) == 7


def test_warmup_variants_cover_every_trial() -> None:
    config = load_config(
        None,
        [
            RATE,
            "generator.reinforce.credit=sequence",
            "sweep.space.discriminator.pooling.grid=[mean, last]",
            "sweep.space.warmup.generator.steps.choice=[3, 4, 5]",
        ],
    )
    made = [(variant.discriminator.pooling, variant.warmup.generator.steps) for variant in warmup_variants(config)]
    assert made == [("mean", 3), ("mean", 4), ("mean", 5), ("last", 3), ("last", 4), ("last", 5)]
    assert warmup_variants(load_config(None, [RATE])) == [load_config(None, [RATE])]


def variants(*words: str) -> list[Config]:
    return warmup_variants(load_config(None, words))


def test_warmup_variants_are_distinct_warm_ups() -> None:
    seeds, heat = "sweep.space.run.seed.grid=[0, 1, 2]", "sweep.space.rollout.temperature.grid=[0.8, 1.0]"
    assert [each.run.seed for each in variants(RATE, seeds)] == [0, 1, 2]
    assert [(each.run.seed, each.rollout.temperature) for each in variants(seeds, heat)] == [
        (seed, temperature) for seed in range(3) for temperature in (0.8, 1.0)
    ]
    assert len(variants(seeds, heat, "discriminator.contrast=labels")) == 3
    losses = "sweep.space.discriminator.loss.choice=[hinge, least_squares, contrastive]"
    assert [each.discriminator.loss for each in variants(losses, heat)] == ["hinge", "hinge", "contrastive"]
    weights = "sweep.space.discriminator.contrast_weight.uniform=[0.5, 1]"
    (variant,) = variants(weights, "discriminator.contrast_weight=0")
    assert variant.discriminator.contrast_read == "base_model"
    views = "{grid: [{view: without_end}, {view: last_tokens, view_tokens: 2}]}"
    made = variants(f"sweep.space={{discriminator: {views}}}", "generator.reinforce.credit=sequence")
    assert [each.discriminator.view for each in made] == ["without_end", "last_tokens"]


def test_invalid_combinations_are_counted_and_named() -> None:
    view = ("discriminator.view=last_tokens", "discriminator.view_tokens=2", "generator.reinforce.credit=sequence")
    space = "sweep.space={task.response_tokens: {grid: [4, 28]}, discriminator.view_tokens: {grid: [2, 3, 8]}}"
    assert refusal(*view, space) == (
        "sweep.space: 1 of 6 combinations are invalid, such as task.response_tokens=4, discriminator.view_tokens=8: "
        "discriminator.view_tokens=8 exceeds task.response_tokens=4: set it to 4 or less, or set "
        f"discriminator.view=response; {TOGETHER}"
    )
    check_sweep(load_config(None, [f"sweep.space={{{TOGETHER.partition('such as ')[2]}}}"]))


def test_a_range_of_temperatures_is_refused_where_it_changes_the_warm_up() -> None:
    heat = "sweep.space.rollout.temperature.uniform=[0.8, 1.0]"
    changes = "rollout.temperature changes the warm-up, which runs before the trials: list its values as grid or choice"
    assert refusal(RATE, heat) == f"sweep.space.rollout.temperature: {changes}"
    without = "discriminator.contrast=labels"
    check_sweep(load_config(None, [RATE, heat, without]))
    contrast = "sweep.space.discriminator.contrast.grid=[labels, base_model]"
    assert refusal(RATE, heat, without, contrast) == f"sweep.space.rollout.temperature: {changes}"


def test_short_names_stay_distinct() -> None:
    keys = ["generator.learning_rate", "warmup.generator.learning_rate", "run.seed", "discriminator.learning_rate"]
    assert list(short_names(keys).values()) == [
        "generator.learning_rate",
        "warmup.generator.learning_rate",
        "seed",
        "discriminator.learning_rate",
    ]


def test_values_go_into_a_config_by_their_dotted_keys() -> None:
    config = with_values(load_config(), {"generator.betas": [0.1, 0.2], "run.seed": 3, "warmup.cache": None})
    assert (config.generator.betas, config.run.seed) == ((0.1, 0.2), 3)
    with pytest.raises(ConfigError, match=r"^unknown key run.sed; did you mean run.seed\?$"):
        with_values(config, {"run.sed": 1})


@pytest.mark.parametrize("path", sorted((CONFIGS / "sweeps").glob("*.yaml")), ids=lambda path: path.name)
def test_every_sweep_of_the_repository_can_run(path: Path) -> None:
    config = load_config(path)
    check_sweep(config)
    assert config.run.name == path.stem
