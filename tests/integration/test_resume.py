"""A resumed run continues what was begun, or is refused: edited data, another model, another cache, other versions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rlgaf_ray as rl
from rlgaf_ray.config import with_values
from rlgaf_ray.loop.checkpoint import Checkpoints
from rlgaf_ray.loop.run_folder import RunFolder
from rlgaf_ray.models.generator import build_tiny_gpt2
from rlgaf_ray.models.tokenizer import train_bpe, wrap_bpe
from rlgaf_ray.run import provenance
from rlgaf_ray.training.fingerprint import folder_fingerprint
from tests.integration.test_api import small_run

NOT_THE_DATA = r"step_000002 cannot be resumed: the data differ from those the run started with: restore them, or"


def save_model(folder: Path, *, seed: int) -> None:
    tokenizer = wrap_bpe(train_bpe(["what is 1 and 1? it is 2, of course"], 300))
    tokenizer.save_pretrained(folder)
    build_tiny_gpt2(vocab_size=len(tokenizer), end_of_text_id=0, seed=seed).save_pretrained(folder)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pairs, a model, a cache and a run of two iterations."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("begun")
    save_model(folder / "model", seed=0)
    rl.train(config_of(folder, 2), roles="local")
    return folder


def config_of(folder: Path, iterations: int) -> rl.Config:
    words = [f"model.generator={folder}/model", f"run.iterations={iterations}", "discriminator.frozen_layers=0"]
    return small_run(folder, *words, "task.prompt_tokens=40", "task.response_tokens=40")


def resume(begun: Path, values: dict[str, Any] | None = None, **options: Any) -> rl.Outcome:
    return rl.train(with_values(config_of(begun, 3), values or {}), roles="local", resume=True, **options)


def test_edited_data_are_refused_before_the_warm_ups(begun: Path, tmp_path: Path) -> None:
    config = config_of(begun, 3)
    rows = (begun / "pairs.jsonl").read_text()
    (tmp_path / "edited.jsonl").write_text(rows.replace("it is 20, of course", "it is 21, of course"))
    kept = (begun / "api/data.json").read_bytes()
    cached = sorted((begun / "cache" / "warmups").iterdir())
    config = with_values(config, {"task.jsonl.path": str(tmp_path / "edited.jsonl")})
    with pytest.raises(rl.UserError, match=NOT_THE_DATA):
        rl.train(config, roles="local", resume=True)
    assert (begun / "api/data.json").read_bytes() == kept
    assert sorted((begun / "cache" / "warmups").iterdir()) == cached


def test_another_model_behind_the_same_path_is_refused(begun: Path) -> None:
    shutil.move(begun / "model", begun / "moved")
    try:
        save_model(begun / "model", seed=1)
        with pytest.raises(rl.UserError, match=r"model\.generator differs from the model the run started with"):
            resume(begun)
        shutil.rmtree(begun / "model")
        shutil.copytree(begun / "moved", begun / "model")
        settings = json.loads((begun / "model/tokenizer_config.json").read_text())
        (begun / "model/tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": "{{ messages }}"}))
        with pytest.raises(rl.UserError, match=r"model\.generator differs from the model the run started with"):
            resume(begun)
    finally:
        shutil.rmtree(begun / "model")
        shutil.move(begun / "moved", begun / "model")


def test_another_cache_is_refused_unless_it_gives_the_same_models(begun: Path, tmp_path: Path) -> None:
    other = tmp_path / "cache"
    shutil.copytree(begun / "cache", other)
    (sft,) = (path for path in (other / "warmups").iterdir() if path.name.startswith("sft-") and path.is_dir())
    build_tiny_gpt2(vocab_size=264, end_of_text_id=0, seed=5).save_pretrained(sft)
    with pytest.raises(
        rl.UserError, match=r"warmup\.cache holds a different SFT model, the KL reference, than the run"
    ):
        resume(begun, {"warmup.cache": str(other)})
    (found,) = (path for path in (other / "warmups").iterdir() if path.name.startswith("contrast-") and path.is_dir())
    shutil.rmtree(sft)
    shutil.copytree(begun / "cache" / "warmups" / sft.name, sft)
    with np.load(found / "contrast.npz") as stored:
        np.savez(found / "contrast.npz", token_ids=stored["token_ids"][::-1], lengths=stored["lengths"])
    with pytest.raises(rl.UserError, match=r"warmup\.cache holds different contrast samples than the run"):
        resume(begun, {"warmup.cache": str(other)})
    shutil.copytree(begun / "api", tmp_path / "api")
    made_again = {"warmup.cache": str(tmp_path / "empty"), "run.root": str(tmp_path)}
    assert resume(begun, made_again).iteration == 3, "the warm-ups come out the same on the same machine"


def test_other_versions_are_refused_unless_they_are_accepted(
    begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(begun / "api", tmp_path / "api")
    real = provenance.versions()
    monkeypatch.setattr(provenance, "versions", lambda: {**real, "torch": "9.9", "vllm": "not installed"})
    message = rf"was trained with torch {torch.__version__.split('+')[0]}.*, vllm .*, and here is torch 9\.9, vllm not"
    with pytest.raises(rl.UserError, match=message):
        resume(begun, {"run.root": str(tmp_path)})
    outcome = resume(begun, {"run.root": str(tmp_path)}, other_versions=True)
    assert outcome.iteration == 3
    state = json.loads((tmp_path / "api/checkpoints/step_000003/state.json").read_text())
    assert state["provenance"]["torch"] == "9.9"


def test_a_best_metric_of_other_tasks_is_refused_before_training(begun: Path) -> None:
    message = r"^evaluation\.best_metric=eval/judge_share is not measured: "
    with pytest.raises(rl.UserError, match=message):
        resume(begun, {"evaluation.best_metric": "eval/judge_share"})
    assert [path.name for path in Checkpoints(begun / "api/checkpoints", keep=9).all()] == ["step_000002"]


def test_a_fingerprint_follows_content_and_not_the_path(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one/config.json").write_text("{}")
    (tmp_path / "one/model.safetensors").write_bytes(b"weights")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    (tmp_path / "two/README.md").write_text("not read")
    first = folder_fingerprint(tmp_path / "one")
    assert folder_fingerprint(tmp_path / "two") == first
    (tmp_path / "two/model.safetensors").write_bytes(b"WEIGHTS")
    assert folder_fingerprint(tmp_path / "two") != first
    (tmp_path / "one/chat_template.jinja").write_text("{{ messages }}")
    assert folder_fingerprint(tmp_path / "one") != first


def test_a_run_that_is_in_use_is_refused_before_its_checkpoint_is_read(begun: Path) -> None:
    kept = sorted(path for path in (begun / "api").rglob("*"))
    for resumed in (True, False):
        with (
            RunFolder(config_of(begun, 3).run).claimed(),
            pytest.raises(rl.UserError, match=r"api is in use by process \d+ on .*: wait for that run or stop it"),
        ):
            rl.train(config_of(begun, 3), roles="local", resume=resumed)
    assert sorted(path for path in (begun / "api").rglob("*")) == kept
