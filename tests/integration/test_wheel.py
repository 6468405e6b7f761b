"""The lines that the README shows, in a folder outside the clone, with what a wheel installs and an empty home."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.test_api import unpacked_wheel

SCRIPT = """
import json, sys
import rlgaf_ray as rl

def short(completions, **columns):
    return [-len(text) / 100 for text in completions]

config = rl.load_config("imdb_positive", sys.argv[1:], small=True)
out = rl.train(config, rewards={"discriminator": 1.0, short: 0.3}, trackers=["mlflow"])
print(json.dumps({"package": rl.__file__, "last": out.last, "samples": len(out.samples), "folder": str(out.folder)}))
"""
FEW = [
    "run.name=wheel",
    "run.iterations=2",
    "rollout.num_workers=1",
    "rollout.batch_size=16",
    "discriminator.batch_size=16",
    "warmup.discriminator.steps=2",
    "task.max_demonstrations=300",
    "evaluation.num_prompts=64",
    "evaluation.embeddings=false",
]


@pytest.mark.slow
def test_a_wheel_trains_outside_the_clone_with_a_reward_and_a_tracker(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    site, work = unpacked_wheel(tmp_path), tmp_path / "work"
    work.mkdir()
    store = f"sqlite:///{work}/mlflow.db"
    here = {name: value for name, value in os.environ.items() if name.startswith(("PATH", "RAY_", "LANG"))}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *FEW],
        cwd=work,
        env=here | {"PYTHONPATH": str(site), "HOME": str(tmp_path), "MLFLOW_TRACKING_URI": store},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    out = json.loads(done.stdout.splitlines()[-1])
    assert out["package"] == str(site / "rlgaf_ray" / "__init__.py")
    assert out["last"]["eval/closeness"] < 0 and out["samples"] > 0 and Path(out["folder"]).is_dir()
    rows = [json.loads(line) for line in (work / "runs/wheel/metrics.jsonl").read_text().splitlines()]
    client = mlflow.MlflowClient(store)
    (run,) = client.search_runs(["0"]) or client.search_runs([e.experiment_id for e in client.search_experiments()])
    logged = client.get_metric_history(run.info.run_id, "reward/short")
    assert [(each.step, each.value) for each in logged] == [(row["iteration"], row["reward/short"]) for row in rows[1:]]
