"""Adapters: initially without effect, the only trained weights, can be disabled, and merge exactly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from rlgaf_ray.config.lora import LoraSettings
from rlgaf_ray.errors import UserError
from rlgaf_ray.models.lora import (
    WithoutAdapters,
    adapters_off,
    add_adapters,
    export_network,
    linear_layers,
    load_adapters,
    merged_state,
    save_adapters,
)

TOKENS = torch.tensor([[3, 7, 1, 9], [2, 2, 5, 8]])
GPT2 = GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=2, n_head=2)
LLAMA = LlamaConfig(
    vocab_size=20,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=2,
    tie_word_embeddings=False,
)
SETTINGS = LoraSettings(rank=4, alpha=8.0)


@pytest.fixture(params=["gpt2", "llama"])
def network(request: pytest.FixtureRequest) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2) if request.param == "gpt2" else LlamaForCausalLM(LLAMA)
    return model.eval()


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def move(network: PreTrainedModel, seed: int = 1) -> None:
    """Change every trainable weight, as training would."""
    numbers = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=numbers) * 0.3)


def test_rank_0_changes_nothing(network: PreTrainedModel) -> None:
    before = dict(network.named_parameters())
    add_adapters(network, LoraSettings(), seed=0)
    assert dict(network.named_parameters()).keys() == before.keys()
    assert all(parameter.requires_grad for parameter in network.parameters())
    merged = merged_state(network)
    assert list(merged) == list(network.state_dict())
    assert all(merged[name].data_ptr() == tensor.data_ptr() for name, tensor in network.state_dict().items())


def test_new_and_disabled_adapters_do_not_change_the_outputs(network: PreTrainedModel) -> None:
    plain = logits(network)
    add_adapters(network, SETTINGS, seed=0)
    assert torch.equal(logits(network), plain)
    move(network)
    assert (logits(network) - plain).abs().max() > 0.01
    with adapters_off(network):
        assert torch.equal(logits(network), plain)
    assert torch.equal(logits(WithoutAdapters(network)), plain)
    assert not torch.equal(logits(network), plain)  # enabled again


def test_an_adapted_layer_matches_the_equation() -> None:
    """y = x W + b + (alpha / rank) x A B, by hand, for a transposed GPT-2 layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = GPT2LMHeadModel(GPT2).eval()
    layer = network.transformer.h[1].mlp.c_fc
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    add_adapters(network, SETTINGS, seed=0)
    move(network)
    adapted = network.transformer.h[1].mlp.c_fc
    down, up = (getattr(adapted, name)["default"].weight.T for name in ("lora_A", "lora_B"))
    assert (tuple(down.shape), tuple(up.shape)) == ((8, 4), (4, 32))
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(adapted(x), x @ weight + bias + 2.0 * (x @ down) @ up)  # alpha / rank = 2
    torch.testing.assert_close(
        merged_state(network)["transformer.h.1.mlp.c_fc.weight"], weight + 2.0 * (down @ up).detach()
    )


def test_only_adapters_have_gradients(network: PreTrainedModel) -> None:
    num_layers = {"GPT2LMHeadModel": 4, "LlamaForCausalLM": 7}[type(network).__name__]  # per block; there are two
    add_adapters(network, SETTINGS, seed=0)
    move(network)
    output = network(input_ids=TOKENS).logits
    logits(WithoutAdapters(network))  # the reference's pass comes between the policy's forward and backward
    output.square().mean().backward()
    with_gradient = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    adapters = {name for name, _ in network.named_parameters() if ".lora_" in name}
    assert with_gradient == adapters
    assert len(adapters) == 2 * 2 * num_layers
    assert all(
        float(parameter.grad.abs().max()) > 0 for parameter in network.parameters() if parameter.grad is not None
    )


def test_a_merged_export_has_the_same_logits(network: PreTrainedModel, tmp_path: Path) -> None:
    names = list(network.state_dict())
    add_adapters(network, SETTINGS, seed=0)
    move(network)
    assert list(merged_state(network)) == names  # the names and order that an engine expects
    export_network(network, tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert list(plain.state_dict()) == names
    torch.testing.assert_close(logits(plain), logits(network), atol=1e-5, rtol=0)


def test_adapters_round_trip_through_a_checkpoint(network: PreTrainedModel, tmp_path: Path) -> None:
    add_adapters(network, SETTINGS, seed=0)
    move(network)
    wanted = logits(network)
    save_adapters(network, tmp_path)
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    (file,) = tmp_path.iterdir()
    assert 4 * trained < file.stat().st_size < 4 * trained + 8000
    move(network, seed=2)
    assert not torch.equal(logits(network), wanted)
    load_adapters(network, tmp_path)
    assert torch.equal(logits(network), wanted)


def test_a_checkpoint_of_another_network_raises(tmp_path: Path) -> None:
    def build(seed: int, settings: LoraSettings = SETTINGS) -> PreTrainedModel:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = GPT2LMHeadModel(GPT2)
        add_adapters(network, settings, seed=0)
        return network

    save_adapters(build(0), tmp_path)
    load_adapters(build(0), tmp_path)
    with pytest.raises(UserError, match="belongs to other frozen weights"):
        load_adapters(build(1), tmp_path)
    with pytest.raises(UserError, match=r"adapters of another shape: resume with the model\.lora"):
        load_adapters(build(0, LoraSettings(rank=2)), tmp_path)
    with pytest.raises(UserError, match=r"has no adapters: model\.lora cannot be enabled"):
        load_adapters(build(0), tmp_path / "elsewhere")


def test_target_modules_are_applied_or_raise(network: PreTrainedModel) -> None:
    one = sorted(linear_layers(network))[0]
    with pytest.raises(UserError, match=f"target_modules names 'lm_head', but the linear layers of .* are {one}, "):
        add_adapters(network, LoraSettings(rank=2, target_modules=[one, "lm_head"]), seed=0)
    add_adapters(network, LoraSettings(rank=2, target_modules=[one]), seed=0)
    adapted = [name for name, _ in network.named_parameters() if ".lora_A." in name]
    assert len(adapted) == 2
    assert all(f".{one}." in name for name in adapted)


def test_a_discriminators_head_is_trained_with_adapters(network: PreTrainedModel, tmp_path: Path) -> None:
    network.save_pretrained(tmp_path / "base")
    scalar = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1, pad_token_id=0).eval()
    add_adapters(scalar, SETTINGS, seed=0, trained=[scalar.score])
    move(scalar)
    wanted = logits(scalar)
    assert scalar.score.weight.requires_grad
    export_network(scalar, tmp_path / "merged")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(plain), wanted, atol=1e-5, rtol=0)
