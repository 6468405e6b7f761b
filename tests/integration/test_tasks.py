"""A task with a measure of its own, passed in from Python: the one that docs/tasks.md shows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import rlgaf_ray as rl
from rlgaf_ray.main import main
from tests.integration.test_api import TINY

PAGE = Path(__file__).parents[2] / "docs" / "tasks.md"


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    """The names that the page's first block of code defines."""
    names: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[0], names)
    return names


def small_run(folder: Path, *more: str) -> rl.Config:
    words = [
        f"run.root={folder}",
        "run.iterations=2",
        "task.prompt_tokens=24",
        f"warmup.cache={folder}/cache",
        "evaluation.every=1",
        "evaluation.quick_every=0",
    ]
    return rl.load_config(None, [*TINY, *words, *more])


def test_a_task_with_its_own_measure(
    tmp_path: Path,
    example: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.set_num_threads(1)
    config = small_run(tmp_path)
    assert not config.stop_at_end_of_text  # as for reviews, the default
    outcome = rl.train(config, roles="local", task=example["Counting"]())
    assert outcome.iteration == 2
    assert 0 <= outcome.last["eval/right"] <= 1 and outcome.last["eval/words"] >= 0
    assert "eval/f1" not in outcome.last and "eval/closeness" not in outcome.last
    # Its responses have many lengths, and its quality marks the best checkpoint.
    assert outcome.config.stop_at_end_of_text and outcome.config.best_metric == "eval/right"
    folder = Path(str(outcome.folder))
    assert folder.name.startswith("Counting-") and (folder / "checkpoints" / "best").exists()

    assert main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    lines = re.findall(r"<td>([^<]+)</td>", page)
    assert lines.index("right") == 0 and "words" in lines and lines.index("words") < lines.index("distinct-2")
    assert (folder / "figures" / "eval_right.png").is_file()

    recorded = rl.load_config(folder / "config.yaml")
    assert recorded.task.name == "python"
    with pytest.raises(rl.UserError, match=r"^task\.name=python is for a task in Python: set task\.python\.source"):
        rl.train(recorded, roles="local", resume=True)
    capsys.readouterr()
    assert main(["--resume", f"run.root={tmp_path}", f"run.name={folder.name}"]) == 1
    assert "error: task.name=python is for a task in Python" in capsys.readouterr().err
    again = rl.train(recorded, roles="local", task=example["Counting"](), resume=True)
    assert again.last == outcome.last
    monkeypatch.setattr(example["CountingTask"], "checksum", "other numbers")
    with pytest.raises(rl.UserError, match=r"step_\d+ cannot be resumed: the data differ from those the run started"):
        rl.train(recorded, roles="local", task=example["Counting"](), resume=True)


@pytest.fixture
def counting(tmp_path: Path) -> str:
    """The page's task as a file, with a source that reads the config."""
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[0]
    code += "\n\ndef configured(task):\n    assert task.prompt_tokens == 24\n    return Counting()\n"
    (tmp_path / "counting.py").write_text(
        code + "\nnothing = 3\ndef empty():\n    return ''\ndef two(task, more):\n    ...\n"
    )
    return f"{tmp_path / 'counting.py'}"


@pytest.mark.parametrize("name", ["Counting", "configured"])
def test_a_task_by_path_trains_like_one_passed_in(
    tmp_path: Path, example: dict[str, Any], counting: str, name: str
) -> None:
    torch.set_num_threads(1)
    passed = rl.train(small_run(tmp_path), roles="local", task=example["Counting"]())
    named = small_run(tmp_path, "task.name=python", f"task.python.source={counting}:{name}")
    outcome = rl.train(named, roles="local")
    assert outcome.last == passed.last and outcome.config.best_metric == "eval/right"
    recorded = rl.load_config(Path(str(outcome.folder)) / "config.yaml")
    assert rl.train(recorded, roles="local", resume=True).last == outcome.last  # without the argument task
    with pytest.raises(rl.UserError, match="and the argument task are two tasks: remove one"):
        rl.train(named, roles="local", task=example["Counting"]())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Absent", "has no Absent"),
        ("nothing", "is no class or function: name one that makes a TaskSource"),
        ("empty", "makes a str, which is no subclass of rlgaf_ray.TaskSource"),
        ("two", "requires task, more: it is called with task at most"),
    ],
)
def test_a_path_that_names_no_task_is_one_line(tmp_path: Path, counting: str, name: str, expected: str) -> None:
    with pytest.raises(rl.UserError, match=expected):
        rl.train(small_run(tmp_path, "task.name=python", f"task.python.source={counting}:{name}"), roles="local")


@pytest.mark.slow
def test_a_comparison_of_a_task_by_path(tmp_path: Path, counting: str, capfd: pytest.CaptureFixture[str]) -> None:
    words = [
        *TINY,
        f"run.root={tmp_path}",
        "run.name=counting",
        "run.iterations=1",
        "task.name=python",
        "task.prompt_tokens=24",
        f"warmup.cache={tmp_path}/cache",
        f"task.python.source={counting}:Counting",
        "compare={methods: [sft, rlgaf], replicates: 1, temperatures: [1.0], samples: 1}",
    ]
    assert main(["compare", *words]) == 0
    assert f"task.python.source={counting}:Counting: its Python code will run" in capfd.readouterr().err
    assert "| RLGAF | 1 |" in (tmp_path / "counting" / "compare.md").read_text()
    assert rl.load_config(tmp_path / "counting" / "config.yaml").best_metric == "eval/right"


@pytest.mark.slow
def test_a_sweep_of_a_task_by_path_is_scored_by_its_own_quality(tmp_path: Path, counting: str) -> None:
    words = [
        *TINY,
        f"run.root={tmp_path}",
        "run.name=counting",
        "run.iterations=1",
        "evaluation.every=1",
        "task.name=python",
        "task.prompt_tokens=24",
        f"warmup.cache={tmp_path}/cache",
        f"task.python.source={counting}:Counting",
        "sweep.space.generator.learning_rate.grid=[1.0e-5, 1.0e-3]",
        "sweep.scheduler=none",
    ]
    assert main(["tune", *words]) == 0
    config = rl.load_config(tmp_path / "counting" / "best.yaml")
    assert config.quality == config.best_metric == "eval/right"
    trials = sorted((tmp_path / "counting" / "trials").iterdir())
    last = [json.loads((folder / "reports.jsonl").read_text().splitlines()[-1]) for folder in trials]
    assert len(last) == 2 and all(0 <= report["sweep/score"] <= 1 for report in last)  # the worst is -1.5


def test_a_task_without_one_is_measured_by_its_real_responses(tmp_path: Path, example: dict[str, Any]) -> None:
    task_class: Any = example["CountingTask"]
    source_class: Any = example["Counting"]

    class Plain(task_class):
        measure = rl.Task.measure

    class Source(source_class):
        quality = rl.TaskSource.quality

        def tokenized(self, tokenizer: object, cache_folder: Path) -> rl.Task:
            return Plain(tokenizer)

    torch.set_num_threads(1)
    outcome = rl.train(small_run(tmp_path, "run.iterations=1"), roles="local", task=Source())
    assert outcome.config.best_metric == "eval/f1" and 0 <= outcome.last["eval/f1"] <= 100


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"measure": "rogue"}, "CountingTask.measure='rogue' is unknown: choose one of sentiment, answers, responses"),
        (
            {"measure": "sentiment"},
            "CountingTask.measure='sentiment' needs the task's judge_texts and asked_positive: add them or choose "
            "another",
        ),
        (
            {"baseline": ("eval/absent",)},
            "Successors.baseline has eval/absent, which it does not measure",
        ),
        (
            {"quality": "eval/absent"},
            "evaluation.best_metric=eval/absent is not measured: ",
        ),
    ],
)
def test_mistakes_of_a_task_are_one_line(
    tmp_path: Path, example: dict[str, Any], monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], expected: str
) -> None:
    torch.set_num_threads(1)
    owner = {"measure": "CountingTask", "baseline": "Successors", "quality": "Counting"}
    for name, value in changes.items():
        monkeypatch.setattr(example[owner[name]], name, value)
    with pytest.raises(rl.UserError) as caught:
        rl.train(small_run(tmp_path), roles="local", task=example["Counting"]())
    assert str(caught.value).startswith(expected) and "\n" not in str(caught.value)
    (rows,) = [len(path.read_text().splitlines()) for path in tmp_path.glob("*/metrics.jsonl")] or [0]
    assert rows <= 1, "the evaluation before training finds it"
