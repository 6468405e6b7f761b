"""``rlgaf diff``: config, versions and results of two runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlgaf_ray.config import dump_config, load_config
from rlgaf_ray.main import main


def make(folder: Path, values: list[float], provenance: dict[str, str], *overrides: str) -> Path:
    folder.mkdir(parents=True)
    config = load_config(None, [f"run.name={folder.name}", *overrides])
    (folder / "config.yaml").write_text(dump_config(config))
    rows = [
        {"iteration": n, "eval/closeness": value, "eval/perplexity": value, "eval/length_distance": 10 * value}
        for n, value in enumerate(values)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if provenance:
        (folder / "checkpoints" / "step_000002").mkdir(parents=True)
        (folder / "checkpoints" / "latest").write_text("step_000002\n")
        state = {"iteration": 2, "provenance": provenance}
        (folder / "checkpoints" / "step_000002" / "state.json").write_text(json.dumps(state))
    return folder


@pytest.fixture
def diff(capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "120")

    def run(*folders: Path) -> list[list[str]]:
        """The cells of each row."""
        assert main(["diff", *map(str, folders)]) == 0
        lines = capsys.readouterr().out.splitlines()
        return [[cell.strip() for cell in line.replace("┃", "│").split("│") if cell.strip()] for line in lines]

    return run


def test_what_differs_is_shown_side_by_side(tmp_path: Path, diff) -> None:
    rows = diff(
        make(tmp_path / "a", [0.2, 0.9, 0.5], {"torch": "2.1", "data": "d" * 64, "ray": "2"}, "run.seed=1"),
        make(
            tmp_path / "b",
            [0.2, 0.3, 0.75],
            {"torch": "2.2", "data": "e" * 64, "ray": "2", "vllm": "1"},
            "generator.learning_rate=1e-5",
            "sweep.space.run.seed.grid=[1, 2]",
        ),
    )
    assert ["run.seed", "1", "0"] in rows
    assert ["generator.learning_rate", "3.0e-05", "1.0e-05"] in rows
    assert ["sweep.space.run.seed.grid", "-", "[1, 2]"] in rows
    assert not [row for row in rows if row[:1] in (["run.name"], ["run.root"], ["run.iterations"], ["ray"])]
    assert [row for row in rows if row[:1] in (["torch"], ["data"], ["vllm"])] == [
        ["torch", "2.1", "2.2"],
        ["vllm", "-", "1"],
        ["data", f"{'d' * 12}...", f"{'e' * 12}..."],
    ]
    assert ["eval/closeness", "0.500", "0.750", "+0.250", "0.900", "0.750", "-0.150"] in rows
    assert ["eval/length_distance", "5.000", "7.500", "+2.500", "5.000", "3.000", "-2.000"] in rows, "lower is better"
    assert ["eval/perplexity", "0.5", "0.8", "+0.2", "-", "-"] in rows, "neither direction is better"


def test_equal_runs_are_said_to_be_the_same(tmp_path: Path, diff) -> None:
    rows = diff(make(tmp_path / "1" / "a", [0.2], {}), make(tmp_path / "2" / "a", [0.2], {}))
    assert rows[:2] == [["config: the same"], ["versions and data: the same"]]


def test_a_folder_that_is_no_run(tmp_path: Path, capsys) -> None:
    a = make(tmp_path / "a", [0.2], {})
    assert main(["diff", str(a), str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} is not a run folder")
