"""Scalar heads of decoders for which transformers has no sequence classifier."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlgaf_ray.config.lora import LoraSettings
from rlgaf_ray.errors import UserError
from rlgaf_ray.models.families import scoring_class
from rlgaf_ray.models.generator import blocks_of, load_generator
from rlgaf_ray.models.lora import add_adapters, load_adapters, save_adapters
from rlgaf_ray.models.scalar import ScalarModel
from rlgaf_ray.training.distributed import load_full_state_dict
from rlgaf_ray.training.regularization import dropout_of, freeze_lower_layers
from rlgaf_ray.types import SequenceBatch
from tests.families import FAMILIES, Family, save_family

MAMBA = {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 8}
FALCON_H1 = Family("Falcon-H1", "falcon_h1", MAMBA | {"ssm_multipliers": [0.5, 0.6, 0.7, 0.8, 0.9]})
"""Its layers have buffers that its weights do not contain."""
OWN = [family for family in FAMILIES if family.name in ("Granite", "OLMoE", "Cohere", "LFM2")]
owned = pytest.mark.parametrize("family", OWN, ids=lambda family: family.name)
buffered = pytest.mark.parametrize("family", [*OWN, FALCON_H1], ids=lambda family: family.name)


def batch() -> SequenceBatch:
    """Prompts of 2 and 3 tokens, responses of 3 and 1."""
    tokens = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 13, 0]])
    attention = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
    response = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 0, 1, 0]]).bool()
    return SequenceBatch(tokens, attention, response)


def load(folder: Path, seed: int = 1) -> ScalarModel:
    return ScalarModel.load(folder, pooling="mean", pad_token_id=0, seed=seed)


@buffered
def test_the_head_reads_the_last_hidden_states(family: Family, tmp_path: Path) -> None:
    model = load(save_family(family, tmp_path / "model"))
    assert type(model.network).__name__.endswith("ForSequenceClassification")
    decoder = load_generator(tmp_path / "model").base_model
    hidden = decoder(input_ids=batch().token_ids, attention_mask=batch().attention_mask).last_hidden_state
    expected = (hidden @ model.network.score.weight[0])[batch().response_mask]
    torch.testing.assert_close(model.token_scores(batch())[batch().response_mask], expected, atol=1e-5, rtol=1e-5)
    assert float(expected.detach().std()) > 0


@buffered
def test_export_load_and_restore(family: Family, tmp_path: Path) -> None:
    model = load(save_family(family, tmp_path / "model"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
        scores = model(batch())
        model.export(tmp_path / "export")
        again = load(tmp_path / "export", seed=2)
        torch.testing.assert_close(again(batch()), scores)
        other = load(tmp_path / "model", seed=3)
        assert not torch.allclose(other(batch()), scores)
        load_full_state_dict(other.network, tmp_path / "export")
        torch.testing.assert_close(other(batch()), scores)
    assert again.network.config.rlgaf_pooling == "mean"
    heads = [load(tmp_path / "model", seed=seed).network.score.weight for seed in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


@owned
def test_frozen_layers_and_adapters(family: Family, tmp_path: Path) -> None:
    save_family(family, tmp_path / "model")
    frozen = load(tmp_path / "model")
    freeze_lower_layers(frozen.network, lambda total: total // 2)
    learning = {name for name, parameter in frozen.network.named_parameters() if parameter.requires_grad}
    assert "score.weight" in learning and any(".layers.1." in name for name in learning)
    assert not any(".layers.0." in name or "embed_tokens" in name for name in learning)

    def adapted() -> ScalarModel:
        model = load(tmp_path / "model")
        add_adapters(model.network, LoraSettings(rank=2), seed=0, trained=[model.network.score])
        return model

    model = adapted()
    with torch.no_grad():
        torch.testing.assert_close(model(batch()), load(tmp_path / "model")(batch()))
        for parameter in (each for each in model.parameters() if each.requires_grad):
            parameter.add_(0.1)
        scores = model(batch())
        save_adapters(model.network, tmp_path / "adapters")
        model.export(tmp_path / "merged")
        torch.testing.assert_close(load(tmp_path / "merged")(batch()), scores, atol=1e-4, rtol=1e-4)
        again = adapted()
        load_adapters(again.network, tmp_path / "adapters")
        torch.testing.assert_close(again(batch()), scores)


@owned
def test_the_head_is_float32_under_autocast(family: Family, tmp_path: Path) -> None:
    model = load(save_family(family, tmp_path))
    hidden = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        scores = model.head(hidden)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, (hidden @ model.network.score.weight[0]))


def test_missing_decoder_weights_raise(tmp_path: Path) -> None:
    family = OWN[0]
    model = AutoModelForCausalLM.from_pretrained(save_family(family, tmp_path))
    state = {name: each for name, each in model.state_dict().items() if "layers.1.mlp" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(
        UserError, match=r"has no model\.layers\.1\.mlp\.[\w.]+, which GraniteForSequenceClassification"
    ):
        load(tmp_path)


def test_blocks_and_dropout_are_found(tmp_path: Path) -> None:
    network = load(save_family(OWN[0], tmp_path)).network
    assert len(blocks_of(network)) == 2
    with dropout_of(network, 0.5):
        assert {block.self_attn.attention_dropout for block in blocks_of(network)} == {0.5}  # type: ignore[union-attr]


def test_a_config_without_a_base_model_raises() -> None:
    class Unknown:
        model_type = "unknown"

    with pytest.raises(UserError, match=r"no base model of unknown .*: set discriminator\.architecture=generative or"):
        scoring_class(Unknown())  # type: ignore[arg-type]
