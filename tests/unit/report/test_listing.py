"""``rlgaf runs``: what the files of a run folder tell."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rlgaf_ray.config import dump_config, load_config
from rlgaf_ray.main import main
from rlgaf_ray.report.listing import Listed, list_runs, shown_age, shown_size


@pytest.fixture
def make(tmp_path: Path):
    """A run folder whose newest file is as many seconds old."""

    def run(name: str, values: list[float], *, exported: bool = True, age: float = 0.0, lock: str = "") -> Path:
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(dump_config(load_config(None, [f"run.name={name}", "run.iterations=3"])))
        rows = [{"iteration": n, "eval/closeness": value} for n, value in enumerate(values)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if exported:
            (folder / "generator").mkdir()
            (folder / "generator" / "config.json").write_text("{}")
        if lock:
            (folder / "run.lock").write_text(lock)
        for file in ("config.yaml", "metrics.jsonl"):
            stat = (folder / file).stat()
            os.utime(folder / file, (stat.st_atime - age, stat.st_mtime - age))
        return folder

    return run


def ended_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def test_states(make, tmp_path: Path) -> None:
    here = socket.gethostname()
    make("finished", [0.1, 0.5, 0.7, 0.6])
    make("stopped", [0.1, 0.5])
    make("failed", [0.1, 0.5], exported=False)
    make("running", [], exported=False, lock=f"process {os.getpid()} on {here}")
    make("killed", [0.1], exported=False, lock=f"process {ended_process()} on {here}")
    make("elsewhere", [0.1], exported=False, lock="process 1 on another-machine")
    make("resumed", [0.1, 0.5], lock=f"process {os.getpid()} on {here}")
    (make("sweep", []) / "trials").mkdir()
    (make("damaged", [0.1]) / "metrics.jsonl").write_text("x\n")
    (make("older", [0.1, 0.2, 0.3, 0.4]) / "config.yaml").write_text("run: {gone: 1}\n")
    (tmp_path / "runs" / "other").mkdir()
    found = {run.name: run for run in list_runs(str(tmp_path / "runs"))}
    assert {name: run.state for name, run in found.items()} == {
        "finished": "finished",
        "stopped": "stopped",
        "failed": "failed",
        "running": "running",
        "killed": "failed",
        "elsewhere": "running on another-machine",
        "resumed": "running",
        "sweep": "sweep",
        "damaged": "damaged",
        "older": "finished",
    }
    run = found["finished"]
    assert (run.iteration, run.iterations, run.metric, run.best, run.best_iteration) == (3, 3, "eval/closeness", 0.7, 2)
    assert found["killed"].best == 0.1 and found["killed"].best_iteration == 0, "the start is all there is"
    assert run.bytes == sum(path.stat().st_size for path in (tmp_path / "runs/finished").rglob("*") if path.is_file())


def test_the_command(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    make("old", [0.25, 0.5], age=7200)
    make("new", [0.25, 0.5, 0.75, 0.7], age=30)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["runs"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "state", "iterations", "best", "size", "last", "written"]
    assert [line.split()[:3] for line in lines] == [["new", "finished", "3/3"], ["old", "stopped", "1/3"]]
    assert "eval/closeness 0.750 at 2" in lines[0] and lines[1].rstrip().endswith("2 h ago")
    assert main(["runs", "runs", "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [record.keys() for record in records] == [set(Listed.__dataclass_fields__)] * 2
    assert records[0]["best"] == 0.75
    (tmp_path / "empty").mkdir()
    assert main(["runs", "empty"]) == 0
    assert capsys.readouterr().out == "no runs in empty\n"


@pytest.mark.parametrize(
    ("root", "expected"),
    [
        ("nowhere", "nowhere is not a folder: give the folder of run.root, as in rlgaf runs ROOT"),
        (
            "s3://b/runs",
            "s3://b/runs is not a local folder, and rlgaf runs lists only local ones: give a local path",
        ),
    ],
)
def test_a_root_that_is_no_folder(root: str, expected: str, capsys) -> None:
    assert main(["runs", root]) == 1
    assert capsys.readouterr() == ("", f"error: {expected}\n")


def test_sizes_and_ages() -> None:
    assert [shown_size(count) for count in (0, 999, 1000, 123_456, 6_500_000, 2.5e12)] == [
        "0 B", "999 B", "1.0 kB", "123 kB", "6.5 MB", "2.5 TB",
    ]  # fmt: skip
    assert [shown_age(seconds) for seconds in (0.2, 59, 60, 7200, 86400 * 3)] == ["0 s", "59 s", "1 min", "2 h", "3 d"]
