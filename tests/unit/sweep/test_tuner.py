"""Paths in the config are made absolute before the trials start in their own working directories."""

from __future__ import annotations

from pathlib import Path

from rlgaf_ray.config import load_config
from rlgaf_ray.sweep.tuner import with_absolute_paths


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
        "task.imdb.path=null",
    ]
    config = with_absolute_paths(load_config(None, words))
    here = Path.cwd()
    assert config.task.jsonl.path == [f"{here}/a.jsonl", "s3://bucket/*.jsonl"]
    assert config.task.jsonl.test_path == f"{here}/b/*.csv"
    assert config.task.jsonl.validation_path is None
