"""Errors before a comparison starts: changed settings, changed data, unsupported methods."""

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
def started(tmp_path: Path) -> Path:
    open_folder(config(tmp_path), tmp_path / "c", resume=False)
    return tmp_path / "c"


def test_a_resumed_comparison_may_add_replicates_and_methods(started: Path) -> None:
    more = ["compare.replicates=4", "compare.methods=[sft, rlgaf, zero_reward]", "compare.concurrent=2"]
    open_folder(config(started.parent, *more), started, resume=True)
    assert load_config(started / "config.yaml").compare.replicates == 4


def test_a_resumed_comparison_may_add_variants_but_not_change_them(started: Path) -> None:
    def resume(rate: float) -> None:
        more = [f"compare.variants.slow.keys={{generator.learning_rate: {rate}}}", "compare.methods=[sft, slow]"]
        open_folder(config(started.parent, *more), started, resume=True)

    resume(1e-5)
    with pytest.raises(UserError, match=r"started with another compare.variants.slow.keys.discriminator.overfit_gap"):
        more = "compare.variants.slow.keys={generator.learning_rate: 1e-5, discriminator.overfit_gap: null}"
        open_folder(config(started.parent, more, "compare.methods=[sft, slow]"), started, resume=True)
    with pytest.raises(UserError, match=r"started with another compare.variants.slow.keys.generator.learning_rate"):
        resume(1e-6)
    with pytest.raises(UserError, match=r"started with another compare.variants.slow"):
        open_folder(config(started.parent), started, resume=True)


@pytest.mark.parametrize("key", ["generator.learning_rate=0.5", "compare.samples=7", "compare.min_p=[0.1]"])
def test_other_settings_are_rejected(started: Path, key: str) -> None:
    with pytest.raises(UserError, match=f"{started} was started with another {key.partition('=')[0]}: restore it"):
        open_folder(config(started.parent, key), started, resume=True)


def test_a_variant_with_other_evaluation_prompts_is_rejected(tmp_path: Path) -> None:
    keys = ("big.keys.task.bridge.board=6", "few.keys.task.max_demonstrations=1")
    variants = [f"compare.variants.{each}" for each in keys]
    ready = config(tmp_path, *variants, "compare.methods=[sft, big]")
    with pytest.raises(UserError, match=r"compare.methods: big is evaluated on other prompts than sft"):
        open_folder(ready, tmp_path / "c", resume=False)
    ready = config(tmp_path, *variants, "compare.methods=[sft, few]", "warmup.sft.steps=auto")
    with pytest.raises(UserError, match=r"compare.methods: few does not work with these data: .*cross-validates"):
        open_folder(ready, tmp_path / "c", resume=False)


def test_other_data_are_rejected(started: Path) -> None:
    with pytest.raises(UserError, match=f"{started} was started with other data: restore them, or choose another"):
        open_folder(config(started.parent, "task.bridge.board=6"), started, resume=True)


def test_a_comparison_of_an_earlier_version_gets_defaults_for_new_keys(started: Path) -> None:
    file = started / "config.yaml"
    file.write_text("".join(line for line in file.read_text().splitlines(True) if "min_p" not in line))
    open_folder(config(started.parent), started, resume=True)


def test_resume_is_required_for_an_existing_comparison_only(started: Path) -> None:
    with pytest.raises(UserError, match="add --resume to resume that comparison"):
        open_folder(config(started.parent), started, resume=False)
    with pytest.raises(UserError, match=r"nothing to resume: .* contains no comparison"):
        open_folder(config(started.parent), started.parent / "other", resume=True)


def test_the_verdict_as_reward_needs_a_task_with_one(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "what is {row}", "response": "{row} it is"}}\n' for row in range(200)))
    task = ["task={name: jsonl, prompt_tokens: 16, response_tokens: 16}", f"task.jsonl.path={rows}"]
    ready = config(tmp_path, *task, "evaluation.num_prompts=10", "compare.methods=[sft, verdict]")
    with pytest.raises(UserError, match=r"compare.methods: verdict needs a task with an exact verdict, but PairTask"):
        open_folder(ready, tmp_path / "c", resume=False)
    assert not (tmp_path / "c" / "config.yaml").exists()
