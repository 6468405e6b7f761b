"""What a sweep changes in the config before its trials start in folders of their own."""

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
