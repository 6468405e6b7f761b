"""``rlgaf sample`` on a run folder made by hand: both models, the scores, prompts as the run encoded them."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlgaf_ray.config import dump_config, load_config
from rlgaf_ray.errors import UserError
from rlgaf_ray.main import main
from rlgaf_ray.models.scalar import ScalarModel
from rlgaf_ray.run.sample import SFT, TRAINED, open_sampler
from rlgaf_ray.training.fingerprint import folder_fingerprint
from tests.families import FAMILIES, save_family

QWEN = next(family for family in FAMILIES if family.name == "Qwen2.5")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``run`` and ``cache``: an SFT model, a trained one with other weights, and a discriminator."""
    root = tmp_path_factory.mktemp("sample")
    run, sft = root / "run", root / "cache" / "warmups" / "sft-0123"
    save_family(QWEN, sft)
    model = AutoModelForCausalLM.from_pretrained(sft)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
    model.save_pretrained(run / "generator")
    tokenizer = AutoTokenizer.from_pretrained(sft)
    tokenizer.save_pretrained(run / "generator")
    scalar = ScalarModel.load(sft, pooling="mean", pad_token_id=tokenizer.pad_token_id, seed=0)
    scalar.export(run / "discriminator")
    words = ["task.name=jsonl", "task.jsonl.path=gone.jsonl", f"warmup.cache={root / 'cache'}", "run.name=run"]
    words += ["rollout.engine=transformers", "task.response_tokens=6", "model.lora.rank=4", "generator.average_decay=0"]
    (run / "config.yaml").write_text(dump_config(load_config(None, words)))
    (run / "data.json").write_text(json.dumps({"chats": False}))
    checkpoint = run / "checkpoints" / "step_000001"
    checkpoint.mkdir(parents=True)
    (run / "checkpoints" / "latest").write_text("step_000001\n")
    (checkpoint / "state.json").write_text(json.dumps({"provenance": {"sft_model": folder_fingerprint(sft)}}))
    return root


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """The run, to be changed; its cache is the common one."""
    return shutil.copytree(made / "run", tmp_path / "run")


def test_both_models_answer_with_scores(made: Path) -> None:
    notes: list[str] = []
    with open_sampler(str(made / "run"), report=notes.append) as sampler:
        found = sampler.sample("hello", num_samples=3, seed=1)
        assert list(found) == [SFT, TRAINED] and notes == []
        assert [len(samples) for samples in found.values()] == [3, 3]
        assert found[SFT] != found[TRAINED]
        assert sampler.sample("hello", num_samples=3, seed=1) == found
        assert sampler.sample("hello", num_samples=3, seed=2) != found
        assert all(isinstance(item.score, float) for samples in found.values() for item in samples)
        assert len({item.score for samples in found.values() for item in samples}) > 1
        cold = sampler.sample("hello", num_samples=2, temperature=1e-4, max_tokens=1)[SFT]
        assert cold[0] == cold[1], "one token, the likeliest"
        with pytest.raises(UserError, match="the prompt '' has no tokens: give some text"):
            sampler.sample("")


def test_responses_are_sampled_as_in_training(copy: Path, made: Path) -> None:
    words = ["generator.algorithm=gumbel", "rollout.top_k=1", "model.lora.rank=0"]
    (copy / "config.yaml").write_text(dump_config(load_config(copy / "config.yaml", words)))
    with open_sampler(str(copy)) as sampler:
        samples = sampler.sample("hello", num_samples=4, seed=1)[TRAINED]
    assert len({sample.text for sample in samples}) == 1, "the likeliest token each time"


def test_an_sft_model_that_is_gone_is_named(copy: Path, tmp_path: Path, capsys) -> None:
    config = load_config(copy / "config.yaml", [f"warmup.cache={tmp_path / 'empty'}"])
    (copy / "config.yaml").write_text(dump_config(config))
    shutil.rmtree(copy / "discriminator")
    assert main(["sample", str(copy), "--prompt", "a", "-n", "1"]) == 0
    out, err = capsys.readouterr()
    assert TRAINED in out and SFT not in out
    assert err.splitlines() == [
        f"the SFT model that {copy} started with is not in {tmp_path / 'empty' / 'warmups'}, so only the trained "
        f"model is sampled: restore that cache, or train the SFT model again with rlgaf evaluate {copy}",
        f"{copy} exported no discriminator network, so the samples have no scores",
    ]


def test_a_run_without_models_is_refused(tmp_path: Path, capsys) -> None:
    assert main(["sample", str(tmp_path), "--prompt", "a"]) == 1
    assert capsys.readouterr().err == (
        f"error: {tmp_path} has no exported models (generator/): give the folder of a run that has ended\n"
    )


def test_prompts_are_read_from_a_pipe(made: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("first prompt\n\nsecond [b]prompt\n"))
    assert main(["sample", str(made / "run"), "-n", "1", "--max-tokens", "2"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines.index("first prompt") < lines.index("second [b]prompt")
    monkeypatch.setattr("sys.stdin", io.StringIO("x" * 3000))
    assert main(["sample", str(made / "run")]) == 1
    assert "tokens" in capsys.readouterr().err


@pytest.mark.parametrize("chats", [True, False])
@pytest.mark.parametrize("remote", [True, False])
def test_a_prompt_is_encoded_as_the_runs_prompts_were(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chats: bool, remote: bool
) -> None:
    """As a user's message where the run records that its demonstrations are chats, in a remote folder too."""
    tokenizer = AutoTokenizer.from_pretrained(copy / "generator")
    messages = [{"role": "user", "content": "a question"}]
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    expected = tokenizer(rendered if chats else "a question", add_special_tokens=False)["input_ids"]
    (copy / "data.json").write_text(json.dumps({"chats": chats}))
    store = SubTreeFileSystem(str(tmp_path), LocalFileSystem())
    monkeypatch.setattr("rlgaf_ray.data.remote.connect", lambda *_: store)
    (tmp_path / "bucket").mkdir()
    run = copy.rename(tmp_path / "bucket" / "run")
    with open_sampler("s3://bucket/run" if remote else str(run)) as sampler:
        assert sampler.encode("a question") == expected


def test_a_run_that_records_no_form_of_its_prompts_is_refused(copy: Path) -> None:
    (copy / "data.json").write_text("{}")
    with pytest.raises(UserError, match=r"data\.json does not record chats: restore the file"), open_sampler(str(copy)):
        pass
