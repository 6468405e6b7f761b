"""The program as a user runs it: real Ray, real vLLM, real reviews; what it leaves behind is loaded again."""

from __future__ import annotations

import importlib.util
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlgaf_ray.config import load_config
from rlgaf_ray.evaluation.embeddings import PACKAGE
from rlgaf_ray.main import main
from rlgaf_ray.report.quality import Comparison
from tests.patience import wait_until

pytest.importorskip("vllm", reason="vLLM is not installed")

MAIN = [sys.executable, "-m", "rlgaf_ray.main"]
DOCUMENTED = set(re.findall(r"`([a-z]+/[a-z0-9_]+)`", (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()))

FRESH_ENGINE = """
import sys, numpy as np
from rlgaf_ray.engines.vllm import VLLMEngine
from rlgaf_ray.types import Prompt, SamplingSettings
engine = VLLMEngine(sys.argv[1], max_model_len=24)
prompt = Prompt(prompt_id=0, token_ids=np.array([40, 41, 42], np.int32))
rollouts = engine.generate([prompt], SamplingSettings(max_new_tokens=20, samples_per_prompt=4), seeds=[1, 2, 3, 4])
np.savez(
    sys.argv[2],
    tokens=np.stack([r.response_ids for r in rollouts if len(r.response_ids) == 20]),
    logprobs=np.stack([r.behaviour_logprobs for r in rollouts if len(r.response_ids) == 20]),
)
"""


@pytest.fixture(scope="module")
def finished(small_under, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished small run on vLLM, two rollout workers; with sentence embeddings where they are installed."""
    root = tmp_path_factory.mktemp("runs")
    more = ["evaluation.embeddings=true", "evaluation.quick_every=3", "evaluation.quick_prompts=20"]
    more += ["discriminator.updates_per_generator_update=1", "generator.average_decay=0"]
    assert main(small_under(root, "run.name=whole", "rollout.num_workers=2", "checkpoint.keep=1", *more)) == 0
    return root / "whole"


def test_the_run_folder_is_complete(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == list(range(9))
    assert [row["iteration"] for row in rows if "eval/closeness" in row] == [0, 4, 8]
    assert [row["iteration"] for row in rows if "quick/two_sample_auc" in row] == [3, 6]
    assert ("eval/embedding_share" in rows[0]) == (importlib.util.find_spec(PACKAGE) is not None)
    assert {name for row in rows for name in row} - {"iteration"} <= DOCUMENTED
    assert max(row["generator/engine_logprob_gap"] for row in rows[1:]) < 0.05
    assert load_config(finished / "config.yaml").rollout.num_workers == 2
    assert len(json.loads((finished / "data.json").read_text())["splits_sha256"]) == 64
    assert (finished / "samples.md").read_text().count("before: ") == 2
    assert list((finished / "tensorboard").glob("events*"))
    assert {path.name for path in (finished / "checkpoints").iterdir()} >= {"latest", "best", "step_000008"}
    assert (finished / "checkpoints" / "latest").read_text() == "step_000008\n"


def test_every_rollout_is_kept_with_its_score_and_versions(finished: Path) -> None:
    table = pq.read_table(finished / "rollouts" / "000006.parquet")
    assert table.num_rows == 16
    assert set(table["policy_version"].to_pylist()) == {5}
    # scored after the two updates of its warm-up and those of five iterations
    assert set(table["discriminator_version"].to_pylist()) == {7}
    assert all(len(ids) == 12 for ids in table["response_ids"].to_pylist())
    assert len(set(table["text"].to_pylist())) > 8


def test_the_export_gives_the_learners_logprobs_in_transformers_and_in_a_fresh_vllm(
    finished: Path, tmp_path: Path
) -> None:
    exported = AutoModelForCausalLM.from_pretrained(finished / "generator").eval()
    learner = AutoModelForCausalLM.from_pretrained(finished / "checkpoints/step_000008/learner/generator").eval()
    assert AutoTokenizer.from_pretrained(finished / "generator").eos_token_id == 0
    result = tmp_path / "vllm.npz"
    subprocess.run([sys.executable, "-c", FRESH_ENGINE, str(finished / "generator"), str(result)], check=True)
    sampled = np.load(result)
    tokens = torch.from_numpy(
        np.concatenate([np.tile([40, 41, 42], (len(sampled["tokens"]), 1)), sampled["tokens"]], 1)
    )
    with torch.no_grad():
        by_model = [
            torch.log_softmax(model(tokens).logits[:, 2:-1], -1).gather(-1, tokens[:, 3:, None])[..., 0]
            for model in (exported, learner)
        ]
    assert torch.equal(*by_model)
    torch.testing.assert_close(torch.from_numpy(sampled["logprobs"]), by_model[1], atol=1e-4, rtol=0)


def test_the_discriminator_is_a_plain_folder(finished: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(finished / "discriminator")
    assert model.config.rlgaf_pooling == "mean"
    assert model.score.out_features == 1


def test_a_finished_run_is_sampled_listed_and_compared(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(finished), "--prompt", "This film was", "-n", "2"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "SFT" in out and "adversarial" in out and out.count("score") >= 2
    assert main(["runs", str(finished.parent), "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)
    assert (run["name"], run["state"], run["iteration"], run["iterations"]) == ("whole", "finished", 8, 8)
    assert main(["diff", str(finished), str(finished)]) == 0
    assert capsys.readouterr().out.startswith("config: the same\nversions and data: the same\n")


@pytest.mark.slow
def test_a_finished_run_is_held_against_the_swept_sft_model(finished: Path, tmp_path: Path) -> None:
    words = ["--temperatures", "0.8", "--sft-steps", "2", "--num-prompts", "20", "--out", str(tmp_path)]
    done = subprocess.run([*MAIN, "evaluate", str(finished), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "validation prompts, one sample each, temperature 1" in done.stdout and "real text" in done.stdout
    comparison = Comparison.load(tmp_path)
    assert [(row.model, row.temperature) for row in comparison.rows] == [
        (name, temperature) for name in ("SFT", "SFT on demonstrations, 2 steps", "whole") for temperature in (1.0, 0.8)
    ]
    assert comparison.rows[0].metrics["eval/perplexity_ratio"] == 1.0
    assert len({row.metrics["eval/perplexity"] for row in comparison.rows}) == 6
    assert (tmp_path / "quality_diversity.png").read_bytes()[:4] == b"\x89PNG"
    assert main(["report", str(finished), "--out", str(tmp_path)]) == 0


@pytest.mark.slow
def test_an_interrupt_saves_and_the_run_goes_on(small, tmp_path: Path) -> None:
    arguments = small("run.name=cut", "rollout.engine=transformers", "run.iterations=2000", "evaluation.every=0")
    process = subprocess.Popen([*MAIN, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    metrics = tmp_path / "cut" / "metrics.jsonl"
    wait_until(lambda: metrics.is_file() and len(metrics.read_text().splitlines()) > 5, "iteration 5", process=process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate()
    assert process.returncode == 130, output
    assert f"continue with --resume run.root={tmp_path} run.name=cut" in output
    assert "Traceback" not in output
    last = json.loads(metrics.read_text().splitlines()[-1])["iteration"]
    assert (tmp_path / "cut/checkpoints/latest").read_text() == f"step_{last:06d}\n"
    assert main([f"run.root={tmp_path}", "run.name=cut", f"run.iterations={last + 2}", "--resume"]) == 0
    assert len(metrics.read_text().splitlines()) == last + 3
