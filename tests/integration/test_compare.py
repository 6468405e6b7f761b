"""``rlgaf compare`` from the command line: trials in parallel, a page, and finished trials are not repeated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlgaf_ray.main import main
from tests.unit.compare.small import SMALL


@pytest.mark.slow
def test_a_comparison_is_made_and_goes_on(tmp_path: Path, capsys) -> None:
    arguments = ["compare", *SMALL, f"run.root={tmp_path}", "run.name=c", f"warmup.cache={tmp_path / 'cache'}"]
    assert main(arguments) == 0
    folder = tmp_path / "c"
    trials = {path.name: path.read_bytes() for path in (folder / "trials").glob("*.json")}
    assert trials.keys() == {f"{name}-0.json" for name in ("sft", "best_of_4", "rlgaf")}
    assert all((folder / name).is_file() for name in ("compare.html", "compare.md", "config.yaml"))
    rows = {row["name"]: row for row in json.loads((folder / "compare.json").read_text())}
    assert rows["rlgaf"]["rollouts"] == 4 * 16 and rows["best_of_4"]["candidates"] == 4
    assert "best of 4 by D" in capsys.readouterr().out

    assert main(arguments) == 1
    assert "add --resume to resume that comparison" in capsys.readouterr().err
    assert main([*arguments, "--resume", "generator.learning_rate=1e-3"]) == 1
    assert "was started with another generator.learning_rate" in capsys.readouterr().err
    assert main([*arguments, "--resume", "compare.replicates=2"]) == 0
    again = {path.name: path.read_bytes() for path in (folder / "trials").glob("*.json")}
    assert len(again) == 6 and all(again[name] == content for name, content in trials.items())
