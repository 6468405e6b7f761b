from __future__ import annotations

import json
import math
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest

from rlgaf_ray.actors.warmup import Warmups
from rlgaf_ray.config import Config, dump_config, load_config, with_values
from rlgaf_ray.data.task import Task, evaluation_set
from rlgaf_ray.engines.transformers import TransformersEngine
from rlgaf_ray.errors import UserError
from rlgaf_ray.main import main
from rlgaf_ray.models.generator import load_generator
from rlgaf_ray.run import evaluate as module
from rlgaf_ray.run.preparation import prepare_data
from rlgaf_ray.run.provenance import of_inputs
from rlgaf_ray.training.batching import Batching
from rlgaf_ray.training.policy import mean_nll
from rlgaf_ray.types import SamplingSettings
from tests.families import save_family
from tests.unit.run.test_vocabulary import LLAMA, add_to_tokenizer, config


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["evaluate"], "error: evaluate needs a run folder: rlgaf evaluate runs/NAME [runs/OTHER ...]\n"),
        (["evaluate", "nowhere"], "nowhere is not a finished run (it has no config.yaml or no generator/)"),
    ],
)
def test_a_folder_that_is_not_a_run_is_rejected(words: list[str], expected: str, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) in (1, 2)
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("given", ["1,-2", "0", "nan,inf", "1,nan", "inf"])
def test_temperatures_are_positive_numbers(given: str, capsys) -> None:
    assert main(["evaluate", "run", "--temperatures", given]) == 2
    assert capsys.readouterr().err == (
        f"error: rlgaf evaluate: invalid value for '--temperatures': '{given}' is not a list of positive numbers such "
        "as 0.8,1; see rlgaf evaluate --help\n"
    )


class Started(Exception):
    """Ray would start now."""


def record(folder: Path, settings: Config) -> Task:
    """Write the run's config and what it was trained on."""
    task = prepare_data(settings, folder.parent / "cache").task
    (folder / "config.yaml").write_text(dump_config(settings))
    described = {"splits_sha256": task.checksum, "provenance": dict(of_inputs(settings, task))}
    (folder / "data.json").write_text(json.dumps(described))
    return task


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run, as far as it is read before Ray starts."""
    model = save_family(LLAMA, tmp_path / "model")
    settings = config(model, f"warmup.cache={tmp_path / 'cache'}", "evaluation.num_prompts=10")
    folder = tmp_path / "run"
    shutil.copytree(model, folder / "generator")
    record(folder, settings)

    def ray_session(_: object) -> None:
        raise Started

    monkeypatch.setattr(module, "ray_session", ray_session)
    return folder


def test_what_changed_since_the_run_is_refused_before_ray_starts(finished: Path) -> None:
    with pytest.raises(Started):
        module.evaluate([finished])
    rows = finished.parent / "rows.jsonl"
    before = rows.read_text()
    rows.write_text(before.replace("it is 20", "it is 21"))
    with pytest.raises(UserError, match=r"run cannot be evaluated: the data differ from those the run started with"):
        module.evaluate([finished], part="test")
    assert not (finished / module.TEST_READINGS).exists()
    rows.write_text(before)
    save_family(LLAMA, finished.parent / "model", seed=1)
    with pytest.raises(UserError, match=r"run cannot be evaluated: model\.generator differs from the model the run"):
        module.evaluate([finished])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num-prompts", "5"], "num_prompts=5 is too few for self-BLEU: give 10 or more"),
        (["--sft-learning-rate", "0"], "sft_learning_rate=0 is not a positive number: give one such as 5e-4"),
        (["--sft-learning-rate", "nan"], "sft_learning_rate=nan is not a positive number: give one such as 5e-4"),
    ],
)
def test_impossible_options_are_refused_first(words: list[str], message: str, capsys) -> None:
    assert main(["evaluate", "nowhere", *words]) == 1
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_temperature_that_the_engine_would_raise_is_refused(finished: Path) -> None:
    settings = load_config(finished / "config.yaml")
    record(finished, with_values(settings, {"rollout.engine": "vllm"}))
    with pytest.raises(UserError, match=r"^temperature 0\.005 is sampled at 0\.01 by rollout\.engine=vllm of .*more$"):
        module.evaluate([finished], temperatures=[1.0, 0.005])
    record(finished, with_values(settings, {"rollout.engine": "transformers"}))
    with pytest.raises(Started):
        module.evaluate([finished], temperatures=[1.0, 0.005])


def test_a_small_test_split_is_refused_before_it_is_read(finished: Path) -> None:
    settings = with_values(load_config(finished / "config.yaml"), {"task.jsonl.shares.test": 0.03})
    task = record(finished, settings)
    assert 0 < len(task.evaluation("test")) < 10 <= len(task.evaluation("validation"))
    with pytest.raises(UserError, match=r"the part test has only \d demonstrations .* but self-BLEU needs 10: raise"):
        module.evaluate([finished], part="test")
    assert not (finished / module.TEST_READINGS).exists()


def test_runs_with_and_without_reward_functions_are_evaluated_together(finished: Path) -> None:
    function = finished.parent / "reward.py"
    function.write_text("def reward(responses, **columns):\n    return [0.0 for _ in responses]\n")
    rewarded = shutil.copytree(finished, finished.with_name("rewarded"))
    functions = [{"path": f"{function}:reward", "weight": 1.0}]
    record(rewarded, with_values(load_config(finished / "config.yaml"), {"reward.functions": functions}))
    for folders in ([finished, rewarded], [rewarded, finished]):
        with pytest.raises(Started):
            module.evaluate(folders)


def test_the_runs_sampling_is_swept_over_temperature_alone(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real text has one perplexity under the SFT model, at temperature 1 like that of samples."""
    words = {"generator.algorithm": "gumbel", "rollout.temperature": 0.5, "rollout.top_k": 3, "rollout.top_p": 0.9}
    settings = with_values(load_config(finished / "config.yaml"), words | {"evaluation.embeddings": False})
    record(finished, settings)
    model = tmp_path / "model"
    monkeypatch.setattr(module, "ray_session", lambda _: nullcontext())
    monkeypatch.setattr(module, "prepare_warmups", lambda *_: Warmups(model, model, model, None, True))
    used: list[SamplingSettings] = []
    generate = TransformersEngine.generate

    def spied(engine: TransformersEngine, prompts, sampling: SamplingSettings, **others):
        used.append(sampling)
        return generate(engine, prompts, sampling, **others)

    monkeypatch.setattr(TransformersEngine, "generate", spied)
    found = module.evaluate([finished], temperatures=[1.0, 0.8], sft_steps=[], num_prompts=10)
    data = prepare_data(settings, tmp_path / "cache")
    real = evaluation_set(data.task, 10, "validation")
    pad = data.tokenizer.pad_token_id

    def nll(temperature: float) -> float:
        sft = load_generator(model)
        return mean_nll(sft, real, pad_token_id=pad, batching=Batching(8), temperature=temperature)

    (perplexity,) = {row.metrics["eval/perplexity_real"] for row in found.rows}
    assert perplexity == pytest.approx(math.exp(nll(1.0)), rel=1e-4)
    assert [row.metrics["eval/real_nll"] for row in found.rows[:3]] == [
        pytest.approx(nll(temperature), rel=1e-4) for temperature in (0.5, 1.0, 0.8)
    ]
    assert nll(0.5) != pytest.approx(nll(1.0), rel=1e-2)
    assert [(each.temperature, each.top_p, each.top_k) for each in used] == [
        (temperature, 0.9, 3) for temperature in (0.5, 1.0, 0.8) * 2
    ]


def test_each_generator_is_loaded_under_its_own_trust(finished: Path) -> None:
    trusted = shutil.copytree(finished, finished.with_name("trusted"))
    (trusted / "generator" / "code.py").write_text(
        "import transformers\n"
        "class PlantedConfig(transformers.LlamaConfig):\n    model_type = 'planted'\n"
        "class Planted(transformers.LlamaForCausalLM):\n    config_class = PlantedConfig\n"
    )
    described = json.loads((trusted / "generator" / "config.json").read_text())
    described |= {
        "model_type": "planted",
        "auto_map": {"AutoConfig": "code.PlantedConfig", "AutoModelForCausalLM": "code.Planted"},
    }
    (trusted / "generator" / "config.json").write_text(json.dumps(described))
    settings = load_config(finished / "config.yaml")
    trusting = with_values(settings, {"model.trust_remote_code": True})
    (_, plain), (name, planted) = module._trained([finished, trusted], [settings, trusting])
    assert (name, type(plain).__name__, type(planted).__name__) == ("trusted", "LlamaForCausalLM", "Planted")
    with pytest.raises(UserError):
        module._trained([trusted], [settings])


def test_other_versions_are_said_and_evaluated(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads((finished / "data.json").read_text())
    found["provenance"]["torch"] = "0.1"
    (finished / "data.json").write_text(json.dumps(found))
    assert main(["evaluate", str(finished)]) == 1  # as Ray would start
    assert "run was trained with torch 0.1, and is evaluated with torch " in capsys.readouterr().out


def test_a_token_without_an_embedding_is_refused_before_ray_starts(finished: Path) -> None:
    add_to_tokenizer(finished.parent / "model", pad_token="[PAD]")
    with pytest.raises(UserError, match=r"'\[PAD\]' \(pad_token\) has the id"):
        module.evaluate([finished])
