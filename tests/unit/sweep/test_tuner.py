"""Paths in the config are made absolute before the trials start in their own working directories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.tune.experiment import Experiment
from ray.tune.search import Searcher
from ray.tune.search.search_generator import SearchGenerator

from rlgaf_ray.actors.placement import plan_placement
from rlgaf_ray.config import load_config
from rlgaf_ray.errors import UserError
from rlgaf_ray.loop.run_folder import RunFolder
from rlgaf_ray.sweep import tuner
from rlgaf_ray.sweep.schedulers import build_space
from rlgaf_ray.sweep.tuner import with_absolute_paths
from tests.families import save_family
from tests.unit.run.test_vocabulary import LLAMA, add_to_tokenizer, config


def test_code_by_path_is_found_from_a_trials_folder() -> None:
    functions = "reward.functions=[{path: 'a/r.py:f', weight: 0.5}, {path: 'module:g'}, {name: passed}]"
    config = with_absolute_paths(load_config(None, [functions, "tracking.to=['t.py:Mine', wandb]"]))
    here = Path.cwd()
    assert [section.path for section in config.reward.functions] == [f"{here}/a/r.py:f", "module:g", None]
    assert [section.weight for section in config.reward.functions] == [0.5, 1.0, 1.0]
    assert config.tracking.to == [f"{here}/t.py:Mine", "wandb"]


def test_data_files_are_found_from_a_trials_folder() -> None:
    words = [
        "task.jsonl.path=[a.jsonl, 's3://bucket/*.jsonl']",
        "task.jsonl.test_path='b/*.csv'",
        "task.jsonl.prompts=p.jsonl",
        "task.jsonl.base=[c.txt]",
        "task.hub.prompts=owner/prompts",
        "task.imdb.path=null",
    ]
    config = with_absolute_paths(load_config(None, words))
    here = Path.cwd()
    assert config.task.jsonl.path == [f"{here}/a.jsonl", "s3://bucket/*.jsonl"]
    assert config.task.jsonl.test_path == f"{here}/b/*.csv"
    assert config.task.jsonl.prompts == f"{here}/p.jsonl"
    assert config.task.jsonl.base == [f"{here}/c.txt"]
    assert config.task.hub.prompts == "owner/prompts"
    assert config.task.jsonl.validation_path is None


def test_folders_of_data_sets_are_found_from_a_trials_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("data/mine", "data/asked", "base", "model"):
        (tmp_path / name).mkdir(parents=True)
    words = ["task.hub.dataset=data/mine", "task.hub.prompts=./data/asked", "task.hub.base=base"]
    config = with_absolute_paths(load_config(None, [*words, "model.generator=model"]))
    here, found = Path.cwd(), config.task.hub
    assert [found.dataset, found.prompts, found.base] == [f"{here}/data/mine", f"{here}/data/asked", f"{here}/base"]
    assert config.model.generator == f"{here}/model"
    found = with_absolute_paths(load_config(None, ["task.hub.dataset=owner/name"])).task.hub
    assert [found.dataset, found.prompts] == ["owner/name", None]


def test_tokens_without_an_embedding_are_refused_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Started(Exception):
        """Ray would start now."""

    def ray_session(_: object) -> None:
        raise Started

    monkeypatch.setattr(tuner, "ray_session", ray_session)
    words = [
        "sweep.space={discriminator.updates_per_generator_update: {grid: [0.5, 1]}}",
        f"run.root={tmp_path}",
        f"warmup.cache={tmp_path / 'cache'}",
        "evaluation.num_prompts=10",
    ]
    model = save_family(LLAMA, tmp_path / "model")
    add_to_tokenizer(model, "<note>")
    with pytest.raises(Started):
        tuner.sweep(config(model, *words), resume=False)
    with pytest.raises(UserError, match=r"'<note>' \((demonstrations|part \w+)\) has the id"):
        tuner.sweep(config(model, *words, word="<note>"), resume=False)
    add_to_tokenizer(model, pad_token="[PAD]")
    with pytest.raises(UserError, match=r"'\[PAD\]' \(pad_token\) has the id"):
        tuner.sweep(config(model, *words), resume=False)


@pytest.mark.parametrize("searcher", ["random", "optuna"])
def test_a_resumed_sweep_has_the_limit_of_the_present_cluster(tmp_path: Path, searcher: str) -> None:
    if searcher == "optuna":
        pytest.importorskip("optuna", reason="the extra 'tune' is not installed")
    space = "sweep.space.generator.learning_rate.uniform=[0.1, 0.2]"
    sweep = load_config(None, [f"run.root={tmp_path}", "run.name=s", space, f"sweep.searcher={searcher}"])

    def search(concurrent: int, *, resume: bool) -> Any:
        """Return the search algorithm that Tune runs."""
        placement = plan_placement(sweep, cluster_cpus=2, cluster_gpus=0, node_cpus=2)
        made: Any = tuner.build_tuner(sweep, RunFolder(sweep.run), placement, concurrent, resume=resume)
        found = made._local_tuner._tune_config.search_alg
        return SearchGenerator(found) if isinstance(found, Searcher) else found

    def started(search: Any) -> int:
        return sum(search.next_trial() is not None for _ in range(5))

    first, state = search(1, resume=False), tmp_path / "s" / tuner.STATE
    first.set_search_properties("sweep/score", "max", build_space(sweep))
    first.add_configurations([Experiment("x", lambda values: None, config=build_space(sweep), num_samples=9)])
    assert started(first) == 1
    (state / "experiment_state-1.json").touch()
    first.save_to_dir(str(state), "1")
    second = search(3, resume=True)
    second.restore_from_dir(str(state))
    assert started(second) == 2  # besides the one of the first session
