from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from rlgaf_ray.config import load_config
from rlgaf_ray.errors import UserError
from rlgaf_ray.main import main
from rlgaf_ray.models import built_in
from rlgaf_ray.models.built_in import FOLDER, SHA256, WEIGHTS, model_source
from rlgaf_ray.models.generator import load_generator, max_positions
from rlgaf_ray.models.tokenizer import load_tokenizer


def test_the_model_is_stored_in_bfloat16_and_loaded_in_float32() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 8 * 2**20
    with safe_open(WEIGHTS, "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118
    model, tokenizer = load_generator("film-reviews"), load_tokenizer("film-reviews")
    assert model.dtype == torch.float32
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.0}
    assert len(tokenizer) == model.config.vocab_size == 4096
    assert max_positions("film-reviews") == model.config.n_positions == 128
    assert model.config.eos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id
    ids = torch.tensor([tokenizer.encode("This movie was one of the best films I have ever seen.")])
    assert float(model(ids, labels=ids).loss) < 4.0  # ln 4096 = 8.3
    assert SHA256 in (FOLDER / "README.md").read_text()


def test_it_is_the_default_and_needs_no_base_warmup() -> None:
    config = load_config()
    assert (config.model.generator, config.base_warmup.steps) == ("film-reviews", 0)
    assert load_config(None, ["model.generator=tiny-gpt2"]).base_warmup.steps == 1500
    assert load_config(None, ["warmup.generator.steps=7"]).base_warmup.steps == 7


def test_modified_weights_raise_before_the_run_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = bytearray(WEIGHTS.read_bytes())
    damaged[-1] ^= 1
    path = tmp_path / "model.safetensors"
    path.write_bytes(damaged)
    monkeypatch.setattr(built_in, "WEIGHTS", path)
    built_in._check_weights.cache_clear()
    assert main([f"run.root={tmp_path / 'runs'}"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(f"error: model.generator=film-reviews: {path} does not have the released checksum (")
    assert not (tmp_path / "runs").exists()
    path.unlink()
    with pytest.raises(UserError, match=r"\(no file instead of "):
        model_source("film-reviews")
    assert model_source("gpt2") == "gpt2"
    monkeypatch.undo()
    built_in._check_weights.cache_clear()
