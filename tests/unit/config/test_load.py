"""Loading of configs, and the full error messages of invalid ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rlgaf_ray.config import Config, ConfigError, dump_config, load_config
from rlgaf_ray.config.engines import ENGINES
from rlgaf_ray.config.load import run_config_file
from rlgaf_ray.main import main

TASKS = [
    ["task.imdb.target=positive"],
    ["task.imdb.target=both"],
    ["task.name=squad"],
    ["task.name=jsonl", "task.jsonl.path=pairs.jsonl"],
    ["task.name=jsonl", "task.jsonl.path=['a.csv', 's3://bucket/*.parquet']", "task.jsonl.test_path=b.json"],
    ["task.name=hub", "task.hub.dataset=some/pairs"],
]
CONFIGS = Path(__file__).parents[3] / "configs"
SECTIONS = (
    "run, model, task, warmup, rollout, discriminator, reward, generator, learner, weights, schedule, guard, "
    "evaluation, checkpoint, tracking, cluster, sweep, compare"
)
UNAVERAGED = "generator.average_decay=0"
IN_FLIGHT = ["rollout.engine=vllm_async", "schedule.mode=async", "weights.in_flight=true", UNAVERAGED]


def message(*overrides: str, path: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


@pytest.fixture
def write(tmp_path: Path):
    def make(content: str | bytes) -> Path:
        path = tmp_path / "config.yaml"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return make


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        # unknown keys: misspelt, of another section, of no section
        ("run.sed=1", "unknown key run.sed; did you mean run.seed?"),
        ("generatr.learning_rate=1", "unknown key generatr; did you mean generator?"),
        ("generator.reinforce.klx.x=1", "unknown key generator.reinforce.klx; did you mean generator.reinforce.kl?"),
        ("samples_per_prompt=8", "unknown key samples_per_prompt; did you mean rollout.samples_per_prompt?"),
        (
            "generator.batch_size=8",
            "unknown key generator.batch_size; did you mean warmup.generator.batch_size or warmup.sft.batch_size or "
            "warmup.discriminator.batch_size or rollout.batch_size or discriminator.batch_size?",
        ),
        ("run.colour=red", "unknown key run.colour; run has name, root, storage_timeout_seconds, seed, iterations"),
        ("colour=red", f"unknown key colour; the top level has {SECTIONS}"),
        ("run={1: 2}", "unknown key run.1; run has name, root, storage_timeout_seconds, seed, iterations"),
        ("sweep.trials=3", "unknown key sweep.trials; sweep has space, num_samples, metric, mode, scheduler, searcher, "
         "grace, max_concurrent, asha, median, pbt"),
        # wrong types: nothing is converted silently
        ("run.seed=abc", "run.seed=abc: must be a valid integer"),
        ("run.seed='3'", "run.seed='3': must be a valid integer"),
        ("run.seed=1.5", "run.seed=1.5: must be a valid integer"),
        ("run.seed=true", "run.seed=true: must be a valid integer"),
        ("run.seed={a: 1}", "run.seed={a: 1}: must be a valid integer"),
        ("run.name=123", "run.name=123: must be a valid string"),
        ("generator.learning_rate=", "generator.learning_rate=null: must be a valid number"),
        ("generator.learning_rate=fast", "generator.learning_rate=fast: must be a valid number"),
        ("model.trust_remote_code=1", "model.trust_remote_code=1: must be a valid boolean"),
        ("run=3", "run=3: must be a section with name, root, storage_timeout_seconds, seed, iterations"),
        ("task.imdb.splits=[1]", "task.imdb.splits=[1]: must be a section with base, demonstrations, "
         "judge_validation, judge_test, validation, test"),
        # out of range
        ("run.seed=-1", "run.seed=-1: must be greater than or equal to 0"),
        ("run.seed=4294967296", "run.seed=4294967296: must be less than 4294967296"),
        ("run.iterations=0", "run.iterations=0: must be greater than 0"),
        ("generator.learning_rate=0", "generator.learning_rate=0: must be greater than 0"),
        ("generator.learning_rate=.inf", "generator.learning_rate=.inf: must be a finite number"),
        ("reward.combine=max", "reward.combine=max: must be 'sum' or 'product'"),
        (
            "generator.algorithm=ppo2",
            "generator.algorithm=ppo2: must be 'reinforce', 'ppo', 'seqgan', 'gumbel', 'dpo' or 'raft'",
        ),
        ("run.name=../x", "run.name=../x: must match pattern '^[A-Za-z0-9][A-Za-z0-9._-]*$'"),
        # tuples
        ("generator.betas=[0.5]", "generator.betas=[0.5]: must be a list with more values"),
        ("generator.betas=[0.5, 0.6, 0.7]", "generator.betas=[0.5, 0.6, 0.7]: must be a list of 2 values"),
        ("generator.betas=0.5", "generator.betas=0.5: must be a list of values"),
        ("generator.betas=[0.9, 1.5]", "generator.betas.1=1.5: must be less than or equal to 1"),
        # keys that depend on each other
        ("rollout.batch_size=10",
         "rollout.batch_size=10 is not divisible by rollout.samples_per_prompt=4; use 8 or 12"),
        ("task.imdb.source=path",
         "task.imdb.source=path needs task.imdb.path=FILE (CSV, JSONL or Parquet with columns text and label)"),
        ("task.imdb.path=a.csv",
         "task.imdb.path has no effect with task.imdb.source=package: remove it, or set task.imdb.source=path"),
        ("task.imdb.instruction=Go on", "task.imdb.instruction='Go on' must contain {sentiment}"),
        ("task.squad.path=a.json",
         "task.squad.source=path and task.squad.path=FILE (an official SQuAD file) go together"),
        ("task.name=jsonl", "task.name=jsonl needs task.jsonl.path=FILE (JSON Lines, JSON, CSV or Parquet)"),
        ("task.jsonl.path=3", "task.jsonl.path: must be a path, glob or URI, or a list of them"),
        ("task.jsonl.test_path=[a, 3]", "task.jsonl.test_path: must be a path, glob or URI, or a list of them"),
        ("task.jsonl.validation_path=[]", "task.jsonl.validation_path: must be a path, glob or URI, or a list of them"),
        ("task.max_dropped_share=2", "task.max_dropped_share=2: must be less than or equal to 1"),
        ("task.name=hub", "task.name=hub needs task.hub.dataset=ID (a data set of the Hugging Face hub)"),
        (
            "generator.reinforce.kl.estimator=k1",
            "generator.reinforce.kl.estimator=k1 has no useful gradient as a loss: set it to exact, k2 or k3, or set "
            "generator.reinforce.kl.placement=reward",
        ),
        (
            "generator.ppo.kl={placement: loss, estimator: k3}",
            "generator.ppo.kl.placement=loss is not supported, since InstructGPT's objective subtracts the KL from "
            "the reward: set generator.ppo.kl.placement=reward",
        ),
        *(
            (
                f"generator.ppo.kl={kl}",
                "generator.ppo.kl.estimator=exact is not supported, since PPO's KL is in the reward: set it to k1, k2 "
                "or k3",
            )
            for kl in ("{estimator: exact}", "{estimator: exact, placement: reward}")
        ),
        (
            "generator.seqgan.kl.estimator=exact",
            "generator.seqgan.kl.estimator=exact cannot be a per-token reward: set generator.seqgan.kl.placement=loss",
        ),
        (
            "generator.raft.kl.estimator=k1",
            "generator.raft supports the exact KL only: set generator.raft.kl.estimator=exact",
        ),
        (
            "generator.raft.kl.placement=reward",
            "generator.raft has no rewards of tokens: set generator.raft.kl.placement=loss",
        ),
        ("model.generator=seqgan-lstm",
         "model.generator=seqgan-lstm is not supported by rollout.engine=vllm: set rollout.engine=transformers"),
        ("discriminator={loss: contrastive, replay_share: 0.5}",
         "discriminator.loss=contrastive needs all responses from the same iteration: set "
         "discriminator.replay_share=0, or discriminator.loss=bradley_terry"),
        ("discriminator={architecture: cnn, frozen_layers: 0, dropout: 0.1}",
         "discriminator.architecture=cnn does not support discriminator.dropout: set discriminator.dropout=0.0, or "
         "discriminator.architecture=generator"),
        ("discriminator={architecture: cnn, dropout: 0, frozen_layers: 0, match_lengths: true}",
         "discriminator.architecture=cnn does not support discriminator.match_lengths: set "
         "discriminator.match_lengths=false, or discriminator.architecture=generator"),
        ("discriminator={architecture: cnn, dropout: 0, frozen_layers: 0, view: without_end}",
         "discriminator.architecture=cnn does not support discriminator.view: set discriminator.view=response, or "
         "discriminator.architecture=generator"),
        ("discriminator={architecture: generative, pooling: last}",
         "discriminator.architecture=generative does not support discriminator.pooling: set "
         "discriminator.pooling=mean, or discriminator.architecture=generator"),
        ("discriminator.architecture=generative",
         "generator.reinforce.credit=token needs a reward that is a sum over tokens: set "
         "discriminator.architecture=generator, or generator.reinforce.credit=sequence"),
        ("discriminator.view=last_tokens",
         "discriminator.view=last_tokens needs discriminator.view_tokens: set it to the number of tokens"),
        ("discriminator={view: without_end, view_tokens: 3}",
         "discriminator.view_tokens=3 has no effect with discriminator.view=without_end: remove it, or set "
         "discriminator.view=last_tokens"),
        ("discriminator={view: last_tokens, view_tokens: 29}",
         "discriminator.view_tokens=29 exceeds task.response_tokens=28: set it to 28 or less, or set "
         "discriminator.view=response"),
        ("generator={algorithm: gumbel, entropy_bonus: 0.1}",
         "generator.algorithm=gumbel does not use per-token rewards: remove generator.entropy_bonus"),
        (
            "discriminator.update_ratio.band=[0.8, 0.6]",
            "discriminator.update_ratio.band=[0.8, 0.6] is not increasing: give [low, high] with low < high",
        ),
        (
            "discriminator.update_ratio={minimum: 0.5, maximum: 0.1}",
            "discriminator.update_ratio.minimum=0.5 is above discriminator.update_ratio.maximum=0.1: lower it, or "
            "raise the maximum",
        ),
        ("schedule.mode=later", "schedule.mode=later: must be 'sync' or 'async'"),
        ("schedule.max_staleness=0", "schedule.max_staleness=0: must be greater than 0"),
        ("generator={importance_weight_mode: mask, importance_weight_cap: 0.5}",
         "generator.importance_weight_cap=0.5 with generator.importance_weight_mode=mask would drop every on-policy "
         "token, whose weight is 1: set the cap to 1 or more"),
        ("guard.window=1", "guard.window=1: must be greater than or equal to 2"),
        ("guard.heal.kl_factor=0.5", "guard.heal.kl_factor=0.5: must be greater than or equal to 1"),
        # malformed overrides
        ("seed", "override 'seed' is not of the form section.key=value"),
        ("=3", "override '=3' is not of the form section.key=value"),
        ("run..seed=3", "override 'run..seed=3' is not of the form section.key=value"),
        ("run.seed=[1", "override 'run.seed=[1': line 1, column 3: expected ',' or ']', but got '<stream end>'"),
        (
            "generator.reinforce.baseline=leave_one_out",
            "generator.reinforce: baseline=leave_one_out is per response and does not fit credit=token: set "
            "baseline=position_mean, batch_mean or none, or credit=sequence",
        ),
        (
            "generator.reinforce.kl.placement=reward",
            "generator.reinforce.kl.estimator=exact cannot be a per-token reward: set "
            "generator.reinforce.kl.placement=loss",
        ),
        (
            "generator.seqgan={credit: token, baseline: position_mean}",
            "generator.seqgan.credit=token does not apply, since action values are per token already: set "
            "generator.seqgan.credit=sequence",
        ),
    ],
)  # fmt: skip
def test_an_invalid_override_is_a_one_line_error(override: str, expected: str) -> None:
    assert message(override) == expected


def test_yaml_syntax_in_an_override_is_text_if_the_key_is_a_string() -> None:
    config = load_config(None, ["cluster.address=[::1]:6379", "task.jsonl.path=*.jsonl", "model.generator=[a"])
    assert config.cluster.address == "[::1]:6379"
    assert (config.task.jsonl.path, config.model.generator) == ("*.jsonl", "[a")
    assert load_config(None, ["task.jsonl.path=[a.jsonl, b.jsonl]"]).task.jsonl.path == ["a.jsonl", "b.jsonl"]
    assert message("run.seed=*x") == "override 'run.seed=*x': line 1, column 1: found undefined alias 'x'"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["guard.action=heal", "checkpoint.every=0"],
            "guard.action=heal rolls back to a checkpoint, but checkpoint.every=0 writes none before the end: set "
            "checkpoint.every=50, or guard.action=stop",
        ),
        (
            ["guard.non_finite=heal", "checkpoint.every=0"],
            "guard.non_finite=heal rolls back to a checkpoint, but checkpoint.every=0 writes none before the end: set "
            "checkpoint.every=50, or guard.non_finite=stop",
        ),
        (
            ["discriminator.update_ratio.mode=adaptive", "discriminator.updates_per_generator_update=0"],
            "discriminator.updates_per_generator_update=0 is outside the bounds of "
            "discriminator.update_ratio.mode=adaptive: set it between 0.02 and 4 (discriminator.update_ratio.minimum "
            "and maximum)",
        ),
        (
            ["discriminator.update_ratio.mode=adaptive", "discriminator.held_out=0"],
            "discriminator.update_ratio.mode=adaptive needs held-out demonstrations, but discriminator.held_out=0: "
            "set discriminator.held_out=128, or remove it",
        ),
        (
            ["discriminator.overfit_gap=0.1", "discriminator.held_out=0"],
            "discriminator.overfit_gap needs held-out demonstrations, but discriminator.held_out=0: set "
            "discriminator.held_out=128, or remove it",
        ),
        (
            ["discriminator.labels=shuffled", "warmup.discriminator.type=labels"],
            "discriminator.labels=shuffled must not see correct labels, but warmup.discriminator.type=labels trains "
            "on them: set warmup.discriminator.type=rollouts, or warmup.discriminator.steps=0",
        ),
        (
            ["schedule.mode=async", "generator.algorithm=seqgan"],
            "generator.algorithm=seqgan searches with the engines that asynchronous rollouts would occupy: set "
            "schedule.mode=sync, or generator.algorithm=reinforce or ppo or dpo or raft",
        ),
        (
            ["schedule.mode=async", "generator.algorithm=gumbel"],
            "generator.algorithm=gumbel learns from samples of the current policy: set schedule.mode=sync, or "
            "generator.algorithm=reinforce or ppo or dpo or raft",
        ),
    ],
)
def test_inconsistent_keys_are_rejected(overrides: list[str], expected: str) -> None:
    assert message(*overrides) == expected


def test_demonstrations_are_held_out_only_if_needed() -> None:
    def held_out(*overrides: str) -> int:
        return load_config(None, overrides).held_out_demonstrations

    assert held_out() == 0
    assert held_out("discriminator.update_ratio.mode=adaptive") == held_out("guard.action=stop") == 128
    assert held_out("discriminator.overfit_gap=0.15") == 128
    assert held_out("guard.action=heal", "discriminator.held_out=64") == 64
    assert held_out("guard.action=stop", "discriminator.held_out=0") == 0


def test_stale_rollouts_get_importance_weights_unless_disabled() -> None:
    def resolved(*overrides: str) -> tuple[int, float | None]:
        config = load_config(None, overrides)
        return config.max_staleness, config.importance_weight_cap

    assert resolved() == resolved("schedule.max_staleness=4") == (0, None)
    assert resolved("generator.importance_weight_cap=3") == (0, 3.0)
    assert resolved("schedule.mode=async") == (1, 2.0)
    assert resolved("schedule={mode: async, max_staleness: 4}", "generator.importance_weight_cap=3") == (4, 3.0)
    assert resolved("schedule.mode=async", "generator.importance_weight_mode=none") == (1, None)


def test_an_override_below_a_value() -> None:
    assert message("run.seed=1", "run.seed.x=3") == "override 'run.seed.x=3': run.seed is a value, not a section"


def test_rewards_are_whitened_once_and_only_if_they_are_used() -> None:
    assert message("generator.algorithm=ppo", "reward.whiten=true") == (
        "generator.ppo.whiten_rewards=true and reward.whiten=true would whiten rewards twice: set one of them to false"
    )
    load_config(None, ["generator.algorithm=ppo", "reward.whiten=true", "generator.ppo.whiten_rewards=false"])
    for setting in ("reward.whiten=true", "reward.clip=3.0", "reward.base_logprob=0.1"):
        assert message("generator.algorithm=gumbel", setting) == (
            f"generator.algorithm=gumbel does not use sampled rewards: remove {setting.split('=')[0]}"
        )
    assert message("generator.algorithm=gumbel", "discriminator.match_lengths=true").endswith(
        "which discriminator.match_lengths=true removes: set discriminator.match_lengths=false"
    )


def test_several_errors_are_counted() -> None:
    assert message("run.seed=a", "run.iterations=0", "foo=1") == "run.seed=a: must be a valid integer (and 2 more)"


def test_a_long_or_broken_value_stays_short_and_on_one_line() -> None:
    assert message(f"run.seed={'x' * 200}") == f"run.seed={'x' * 77}...: must be a valid integer"
    assert message(r'run.seed="a\nb"') == "run.seed='a b': must be a valid integer"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("run:\n  seed: abc\n", "{path}: run.seed=abc: must be a valid integer"),
        ("run:\n", "{path}: run=null: must be a section with name, root, storage_timeout_seconds, seed, iterations"),
        ("run:\n  seed: 1\n  seed: 2\n", "{path}: line 3, column 3: duplicate key 'seed'"),
        ("run:\n  seed: [1\n", "{path}: line 3, column 1: expected ',' or ']', but got '<stream end>'"),
        ("run: seed: 1\n", "{path}: line 1, column 10: mapping values are not allowed here"),
        ("? [1]\n: 2\n", "{path}: line 1, column 3: a key must be a plain word"),
        ("run: *other\n", "{path}: line 1, column 6: found undefined alias 'other'"),
        ("run: !!python/name:os.system\n", "{path}: line 1, column 6: tag tag:yaml.org,2002:python/name:os.system "
         "is not supported: write plain values"),
        ("run:\n  seed: 2020-13-45\n", "{path}: not YAML (month must be in 1..12)"),
        ("- 1\n", "{path}: expected sections such as 'run:' at the top, found a list"),
        ("hello\n", "{path}: expected sections such as 'run:' at the top, found a str"),
        (b"run:\n  name: caf\xe9\n", "{path} is not UTF-8 (byte 16): save it as UTF-8"),
    ],
)  # fmt: skip
def test_an_invalid_file_is_a_one_line_error(write, content: str | bytes, expected: str) -> None:
    path = write(content)
    assert message(path=path) == expected.format(path=path)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "none.yaml"
    assert message(path=missing) == f"cannot read config {missing}: No such file or directory"
    assert message(path=tmp_path) == f"cannot read config {tmp_path}: Is a directory"


def test_an_error_names_the_file_unless_an_override_set_the_value(write) -> None:
    path = write("run:\n  iterations: 0\n")
    assert message("run.seed=1", path=path) == f"{path}: run.iterations=0: must be greater than 0"
    assert message("run.iterations=-1", path=path) == "run.iterations=-1: must be greater than 0"
    assert load_config(path, ["run.iterations=3"]).run.iterations == 3


def test_an_empty_file_is_the_defaults(write) -> None:
    assert load_config(write("# nothing yet\n")) == Config() == load_config()


@pytest.mark.parametrize("text", ["1e-5", "1E-5", "+1e-5", "1.0e-5", "1.e-5", "0.00001", ".1e-4"])
def test_a_number_in_scientific_notation_is_a_number(write, text: str) -> None:
    assert load_config(None, [f"generator.learning_rate={text}"]).generator.learning_rate == 1e-5
    assert load_config(write(f"generator:\n  learning_rate: {text}\n")).generator.learning_rate == 1e-5


def test_text_that_only_looks_like_a_number_stays_text() -> None:
    assert load_config(None, ["run.name=1e-5x"]).run.name == "1e-5x"


def test_a_later_override_wins_over_an_earlier_one_and_over_the_file(write) -> None:
    path = write("run:\n  seed: 1\n  iterations: 7\n")
    config = load_config(path, ["run.seed=2", "run.seed=3", "generator.betas=[0.8, 0.9]"])
    assert (config.run.seed, config.run.iterations, config.generator.betas) == (3, 7, (0.8, 0.9))


def test_a_dumped_config_loads_back(write) -> None:
    config = load_config(
        None, ["model.generator='ü: 1 # x'", "generator.betas=[0.1, 0.2]", "warmup.generator.learning_rate=1e-9"]
    )
    assert (config.model.generator, config.warmup.generator.learning_rate) == ("ü: 1 # x", 1e-9)
    assert load_config(write(dump_config(config))) == config


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.name)
def test_every_config_of_the_repository_loads(path: Path) -> None:
    load_config(path)


def test_default_yaml_has_every_key_with_its_default() -> None:
    path = CONFIGS / "default.yaml"
    assert load_config(path) == Config()
    stated = yaml.safe_load(path.read_text())
    assert _dotted_keys(stated) == _dotted_keys(Config().model_dump())


def _dotted_keys(tree: dict, prefix: str = "") -> list[str]:
    keys = []
    for key, value in tree.items():
        keys.append(prefix + key)
        if isinstance(value, dict):
            keys += _dotted_keys(value, f"{prefix}{key}.")
    return keys


def test_an_invalid_config_exits_with_one_line_and_code_2() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rlgaf_ray.main", "run.sed=1"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unknown key run.sed; did you mean run.seed?\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["none.yaml"], "error: cannot read config none.yaml: No such file or directory\n"),
        (
            ["tarin"],
            "error: tarin is not a command, preset, .yaml file or key=value; did you mean train?\n",
        ),
        (["train", "run.seed=1", "x.yaml"], "error: cannot read config x.yaml: No such file or directory\n"),
        (
            ["--resume"],
            "error: --resume needs run.name=NAME (and run.root, unless it is 'runs') or a config file\n",
        ),
    ],
)
def test_the_command_line_is_checked_too(words: list[str], expected: str, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert capsys.readouterr() == ("", expected)


def test_the_printed_config_loads_back(write, capsys) -> None:
    words = ["run.seed=5", "discriminator.updates_per_generator_update=3.0", "--print-config"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert load_config(write(printed)) == load_config(None, words[:2])
    assert main(["train", str(CONFIGS / "default.yaml"), "--print-config"]) == 0
    assert load_config(write(capsys.readouterr().out)) == Config()


def test_a_run_is_resumed_with_the_config_it_was_started_with(tmp_path: Path) -> None:
    folder = tmp_path / "first"
    overrides = [f"run.root={tmp_path}", "run.name=first"]
    with pytest.raises(ConfigError) as caught:
        run_config_file(overrides)
    assert str(caught.value) == (
        f"nothing to resume: {folder / 'config.yaml'} does not exist: check run.root and run.name"
    )
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_config(load_config(None, [*overrides, "run.seed=9", "run.iterations=4"])))
    resumed = load_config(run_config_file(overrides), [*overrides, "run.iterations=6"])
    assert (resumed.run.folder, resumed.run.seed, resumed.run.iterations) == (folder, 9, 6)


def test_small_applies_the_section_small(write, capsys) -> None:
    path = write("run: {iterations: 9, seed: 3}\nsmall:\n  run: {iterations: 2}\n  model: {dtype: bfloat16}\n")
    large, small = load_config(path), load_config(path, ["run.seed=4"], small=True)
    assert (large.run.iterations, large.run.seed, large.model.dtype) == (9, 3, "float32")
    assert (small.run.iterations, small.run.seed, small.model.dtype) == (2, 4, "bfloat16")
    with pytest.raises(ConfigError, match=r"--small needs a config file with a section 'small:', but none given"):
        load_config(None, small=True)
    assert main([str(path), "--small", "--print-config"]) == 0
    assert load_config(write(capsys.readouterr().out)) == load_config(
        None, ["run={iterations: 2, seed: 3}", "model.dtype=bfloat16"]
    )


@pytest.mark.parametrize(
    "path",
    sorted(
        {*CONFIGS.glob("*.yaml"), *(CONFIGS / "recipes").glob("*.yaml")}
        - {CONFIGS / f"{name}.yaml" for name in ("default", "labelled", "bridge")}
    ),
    ids=lambda path: path.name,
)
def test_every_preset_uses_the_papers_model_and_has_a_small_section(path: Path) -> None:
    large, small = load_config(path), load_config(path, small=True)
    lstm = path.stem == "squad_seqgan_lstm"
    assert large.model.generator == ("seqgan-lstm" if lstm else "gpt2")
    built_in = "film-reviews" if small.task.name == "imdb" else "tiny-gpt2"
    assert small.model.generator == ("seqgan-lstm" if lstm else built_in)
    assert small.base_warmup.steps == (0 if built_in == "film-reviews" else 1000)
    assert "Expected result" in path.read_text()


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.name)
def test_a_preset_that_reads_review_labels_says_so_and_the_default_reads_none(path: Path) -> None:
    config, comment = load_config(path), path.read_text().split("\n\n")[0]
    named = "positive and negative reviews" in comment.replace("\n# ", " ")
    assert named == (bool(config.labels_read) and config.task.name == "imdb")
    if path.stem == "labelled":
        assert "positive and negative reviews" in comment.splitlines()[0]
        assert config.discriminator.contrast_weight == 1.3
        back = ["discriminator={contrast: base_model, contrast_weight: 1}", "generator.learning_rate=3e-5"]
        assert load_config(path, [*back, "generator.reinforce.kl.coefficient=2"]) == Config()


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task[0])
def test_every_task_starts_with_sft_of_cross_validated_steps(task: list[str]) -> None:
    config = load_config(None, task)
    assert (config.warmup.sft.steps, config.warmup.discriminator.type) == ("auto", "rollouts")
    assert not config.labels_read and config.discriminator_warmup_updates > 0


def test_the_old_default_with_sft_is_an_ablation() -> None:
    config = load_config(CONFIGS / "ablations" / "old_default.yaml")
    warmup, discriminator, generator = config.warmup, config.discriminator, config.generator
    assert (warmup.sft, warmup.discriminator.type, warmup.discriminator.steps) == (Config().warmup.sft, "labels", 60)
    assert (discriminator.contrast_weight, discriminator.learning_rate) == (1.3, 5e-5)
    assert discriminator.updates_per_generator_update == 0.2
    reinforce = generator.reinforce
    assert (reinforce.kl.coefficient, reinforce.demonstration_coefficient, generator.average_decay) == (0.4, 0, 0)


@pytest.mark.parametrize("name", ["imdb_positive", "stable", "squad_reinforce", "squad_seqgan", "squad_gumbel"])
@pytest.mark.parametrize("small", [False, True])
def test_the_papers_presets_skip_sft_and_warm_up_on_labels(name: str, small: bool) -> None:
    config = load_config(CONFIGS / f"{name}.yaml", small=small)
    assert (config.warmup.sft.steps, config.warmup.discriminator.type) == (0, "labels")
    assert config.discriminator.contrast_weight == 1.3


@pytest.mark.parametrize(
    "other", ["reward.kind=probability_centered", "reward.whiten=true", "reward.clip=2", "discriminator.pooling=last"]
)
def test_token_credit_needs_a_reward_that_is_a_sum_over_tokens(other: str) -> None:
    found = message(other)
    assert found.startswith("generator.reinforce.credit=token needs a reward that is a sum over tokens: set ")
    assert found.endswith(", or generator.reinforce.credit=sequence")
    assert found.split("set ")[1].split("=")[0] == other.split("=")[0]


@pytest.mark.parametrize(
    ("overrides", "fix"),
    [
        (["weights.in_flight=true"], "set rollout.engine=vllm_async"),
        (["rollout.engine=transformers", "rollout.tensor_parallel_size=2"], "set rollout.tensor_parallel_size=1"),
        (
            ["rollout.engine=transformers", "weights.transfer=ipc"],
            "set rollout.engine=vllm or vllm_async, or weights.transfer=auto",
        ),
        (["weights.transfer=nccl"], "the run is on CPU: set weights.transfer=auto, or cluster.gpus_per_actor"),
        (
            ["rollout.engine=transformers", "rollout.sleep_level=1", "cluster.gpus_per_actor=1"],
            "set rollout.sleep_level=0, or rollout.engine=vllm or vllm_async",
        ),
        (
            ["rollout.sleep_level=1"],
            "rollout.sleep_level=1 frees GPU memory, but the engines run on CPU: set "
            "rollout.sleep_level=0, or cluster.gpus_per_actor",
        ),
        (
            ["weights.in_flight=true", "rollout.engine=vllm_async"],
            "weights.in_flight=true has no effect with schedule.mode=sync, where no rollouts are in flight during an "
            "update: set schedule.mode=async, or weights.in_flight=false",
        ),
        ([*IN_FLIGHT, "generator.average_decay=0.9"], "set generator.average_decay=0, or weights.in_flight=false"),
        (
            ["schedule.mode=async", "rollout.sleep_level=1", "cluster.gpus_per_actor=1"],
            "rollout.sleep_level=1 needs idle engines, but with schedule.mode=async they generate continuously: set "
            "rollout.sleep_level=0, or schedule.mode=sync",
        ),
        (
            ["schedule.mode=async", "weights.transfer=nccl", "cluster.gpus_per_actor=1"],
            "weights.transfer=nccl is a collective of learner and engines, but with schedule.mode=async engines load "
            "weights at different times: set weights.in_flight=true, or weights.transfer=auto",
        ),
        *(
            (
                [f"rollout.engine={engine}", "rollout.temperature=0.0099"],
                f"rollout.temperature=0.0099 is sampled at 0.01 by rollout.engine={engine}, so its log-probs would "
                "differ from the learner's: set rollout.temperature=0.01 or more, or rollout.engine=transformers",
            )
            for engine in ("vllm", "vllm_async")
        ),
        (["model.lora.rank=4", "generator.average_decay=0.9"], "set generator.average_decay=0"),
        (
            ["model.lora.rank=4", "learner.strategy=fsdp", "learner.num_workers=2"],
            "learner.strategy=fsdp does not support model.lora.rank=4: set learner.strategy=ddp, or model.lora.rank=0",
        ),
        (
            [
                "model.lora.rank=4",
                UNAVERAGED,
                "discriminator={architecture: cnn, dropout: 0, frozen_layers: 0}",
                "generator.reinforce.credit=sequence",
            ],
            "set discriminator.architecture=generator",
        ),
    ],
)
def test_unsupported_engine_and_adapter_settings_are_rejected(overrides: list[str], fix: str) -> None:
    assert message(*overrides).endswith(fix)


def test_the_lowest_temperature_is_that_of_vllm() -> None:
    assert load_config(None, ["rollout.temperature=0.01"]).rollout.temperature == 0.01
    assert load_config(None, ["rollout.temperature=0.001", "rollout.engine=transformers"]).rollout.temperature == 0.001
    sampling = pytest.importorskip("vllm.sampling_params", reason="vLLM is not installed", exc_type=ImportError)
    for traits in ENGINES.values():
        if traits.vllm:
            assert sampling.SamplingParams(temperature=traits.lowest_temperature).temperature == 0.01
            assert sampling.SamplingParams(temperature=traits.lowest_temperature / 2).temperature == 0.01


def test_gpu_engines_support_sleep_and_nccl_transfer() -> None:
    config = load_config(None, ["cluster.gpus_per_actor=1", "rollout.sleep_level=2", "weights.transfer=nccl"])
    assert (config.rollout.sleep_level, config.weights.transfer) == (2, "nccl")
    config = load_config(None, [*IN_FLIGHT, "cluster.gpus_per_actor=1", "weights.transfer=nccl"])
    assert config.weights.in_flight


def test_several_learners_can_train_adapters() -> None:
    config = load_config(
        None, ["model.lora.rank=4", UNAVERAGED, "learner.num_workers=2", "discriminator.num_workers=2"]
    )
    assert config.model.lora.rank == 4


def test_a_model_folder_of_the_presets_is_found_from_any_directory(tmp_path: Path, monkeypatch) -> None:
    def model(source: str) -> str:
        return load_config(None, [f"model.generator={source}"]).model.generator

    monkeypatch.chdir(tmp_path)
    shape = str(CONFIGS / "scaling/shapes/8b")
    assert model("scaling/shapes/8b") == model(shape) == load_config("scaling/8_gpus").model.generator == shape
    for source in ("scaling/shapes", "ablations/x", "../configs/scaling/shapes/8b", "film-reviews", "x" * 5000):
        assert model(source) == source
    (tmp_path / "scaling/shapes/8b").mkdir(parents=True)
    assert model("scaling/shapes/8b") == "scaling/shapes/8b"


def test_the_models_of_a_wheel_are_beside_its_presets(tmp_path: Path, monkeypatch) -> None:
    shape = tmp_path / "configs/scaling/shapes/9b"
    shape.mkdir(parents=True)
    (shape / "config.json").write_text("{}")
    monkeypatch.setattr("rlgaf_ray.config.presets.PACKAGE", tmp_path)
    assert load_config(None, ["model.generator=scaling/shapes/9b"]).model.generator == str(shape)
