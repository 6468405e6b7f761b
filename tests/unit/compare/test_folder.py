"""What the folder of a comparison is refused for: other settings, other data, methods that are not possible."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlgaf_ray.compare.runner import open_folder
from rlgaf_ray.config import Config, load_config
from rlgaf_ray.errors import UserError
from tests.unit.compare.small import SMALL


def config(tmp_path: Path, *overrides: str) -> Config:
    place = [f"run.root={tmp_path}", "run.name=c", f"warmup.cache={tmp_path / 'cache'}"]
    return load_config(None, [*SMALL, *place, *overrides])


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    open_folder(config(tmp_path), tmp_path / "c", resume=False)
    return tmp_path / "c"


def test_a_comparison_goes_on_with_more_of_the_same(begun: Path) -> None:
    more = ["compare.replicates=4", "compare.methods=[sft, rlgaf, zero_reward]", "compare.concurrent=2"]
    open_folder(config(begun.parent, *more), begun, resume=True)
    assert load_config(begun / "config.yaml").compare.replicates == 4


@pytest.mark.parametrize("key", ["generator.learning_rate=0.5", "compare.samples=7", "compare.min_p=[0.1]"])
def test_other_settings_are_refused(begun: Path, key: str) -> None:
    with pytest.raises(UserError, match=f"{begun} was begun with another {key.partition('=')[0]}: set it as it was"):
        open_folder(config(begun.parent, key), begun, resume=True)


def test_other_data_are_refused(begun: Path) -> None:
    with pytest.raises(UserError, match=f"{begun} was begun with other data: bring them back, or choose another"):
        open_folder(config(begun.parent, "task.bridge.board=6"), begun, resume=True)


def test_a_comparison_of_an_earlier_version_lacks_no_key(begun: Path) -> None:
    file = begun / "config.yaml"
    file.write_text("".join(line for line in file.read_text().splitlines(True) if "min_p" not in line))
    open_folder(config(begun.parent), begun, resume=True)


def test_a_folder_is_resumed_or_new(begun: Path) -> None:
    with pytest.raises(UserError, match="add --resume to go on with that comparison"):
        open_folder(config(begun.parent), begun, resume=False)
    with pytest.raises(UserError, match=r"nothing to resume: .* holds no comparison"):
        open_folder(config(begun.parent), begun.parent / "other", resume=True)


def test_the_verdict_as_reward_needs_a_task_with_one(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "what is {row}", "response": "{row} it is"}}\n' for row in range(200)))
    task = ["task={name: jsonl, prompt_tokens: 16, response_tokens: 16}", f"task.jsonl.path={rows}"]
    ready = config(tmp_path, *task, "evaluation.num_prompts=10", "compare.methods=[sft, verdict]")
    with pytest.raises(UserError, match=r"compare.methods: verdict needs a task with an exact verdict, and PairTask"):
        open_folder(ready, tmp_path / "c", resume=False)
    assert not (tmp_path / "c" / "config.yaml").exists()
