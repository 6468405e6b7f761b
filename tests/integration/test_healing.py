"""A heal on real Ray actors, and what a resumed run keeps of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlgaf_ray.main import main


@pytest.mark.slow
def test_a_run_heals_once_stops_and_is_resumed_healed(small, rows_of, tmp_path: Path, capsys) -> None:
    """Every accuracy is above the limit of 0: ill from the first full window on, whatever is done."""
    guard = ["guard.action=heal", "guard.window=2", "guard.patience=1", "guard.max_heals=1"]
    arguments = small(
        "run.name=ill",
        "rollout.engine=transformers",
        "checkpoint.every=1",
        "discriminator.held_out=16",
        "discriminator.updates_per_generator_update=2",
        "warmup.discriminator.steps=0",
        "generator.reinforce.kl.coefficient=0.4",
        "guard.limits.held_out_accuracy=0.0",
        *guard,
    )
    assert main(arguments) == 1
    folder = tmp_path / "ill"
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "iteration 2: discriminator_saturated: discriminator/held_out_accuracy is " in error
    assert "(guard.max_heals=1 reached); the last checkpoint, step_000001, is intact" in error
    events = [json.loads(line) for line in (folder / "guard.jsonl").read_text().splitlines()]
    assert [(event["action"], event["iteration"]) for event in events] == [("heal", 2), ("stop", 2)]
    assert events[0]["back_to"] == 0

    assert main(["run.name=ill", f"run.root={tmp_path}", "guard.action=warn", "--resume"]) == 0
    rows = rows_of(folder)
    assert [row["iteration"] for row in rows] == list(range(9))
    assert {row["guard/heals"] for row in rows[1:]} == {1.0}
    assert {row["discriminator/update_rate"] for row in rows[1:]} == {0.5}
    assert rows[8]["discriminator/updates"] == 4
    assert {row["generator/kl_coefficient"] for row in rows[1:]} == {0.8}  # twice what it was
    assert rows[1]["generator/learning_rate"] == pytest.approx(0.5e-4)
    assert rows[8]["generator/learning_rate"] == pytest.approx(0.5e-4 / 8)
