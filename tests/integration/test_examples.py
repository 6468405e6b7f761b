"""Each program of ``examples/`` runs, with few rows and two iterations, and does what it says."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
FEW = [
    "task.max_demonstrations=48",
    "task.imdb.splits={base: 9, demonstrations: 200, judge_validation: 300, judge_test: 300, validation: 120, test: 9}",
    "warmup.sft.steps=2",
    "warmup.discriminator.steps=1",
    "rollout.batch_size=8",
    "discriminator.batch_size=8",
    "learner.precision=float32",
    "evaluation.num_prompts=20",
]


@pytest.fixture
def run_example(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs an example as a program; gives what it printed."""

    def run(name: str) -> str:
        torch.set_num_threads(1)
        words = ["--iterations", "2", f"warmup.cache={cache}", f"run.root={tmp_path}", "run.name=example", *FEW]
        monkeypatch.setattr(sys, "argv", [name, *words])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_the_loop_in_one_file(run_example) -> None:
    printed = run_example("local_loop.py")
    lines = re.findall(r"^iteration (\d): mean reward (\S+), KL (\S+), discriminator accuracy (\S+)$", printed, re.M)
    assert [line[0] for line in lines] == ["1", "2"]
    assert float(lines[0][2]) == pytest.approx(0, abs=1e-4), "the first rollouts are the SFT model's"
    assert lines[0][1] != lines[1][1] and all(0 <= float(line[3]) <= 1 for line in lines)


@pytest.mark.slow
def test_a_reward_function(run_example, tmp_path: Path) -> None:
    printed = run_example("custom_reward.py")
    assert f"run folder: {tmp_path / 'example'}" in printed and printed.count("iteration ") == 2
    for row in rows(tmp_path / "example")[1:]:
        assert 0 < row["reward/distinct_words"] <= 1
        expected = row["reward/discriminator"] + 2 * row["reward/distinct_words"]
        assert row["reward/mean"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_a_task(run_example, tmp_path: Path) -> None:
    printed = run_example("custom_task.py")
    assert re.search(r"^SFT: \d+% right, \d+% are numbers\nadversarial: \d+% right", printed, re.M)
    last = rows(tmp_path / "example")[-1]
    assert last["iteration"] == 2 and 0 <= last["eval/right"] <= last["eval/numbers"] <= 1


@pytest.mark.slow
def test_a_discriminator(run_example, tmp_path: Path) -> None:
    assert run_example("custom_discriminator.py").count("discriminator accuracy") == 2
    saved = tmp_path / "example" / "checkpoints" / "step_000002" / "discriminator" / "weights.json"
    weights = json.loads(saved.read_text(encoding="utf-8"))
    assert len(weights) == 4096 and min(weights) < 0 < max(weights)


def test_every_example_is_listed() -> None:
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\]\(([a-z_]+\.(?:py|yaml))\)", page))
    assert named == {path.name for path in EXAMPLES.iterdir() if path.suffix in {".py", ".yaml"}}
