"""Adapters: initially without effect, the only trained weights, can be disabled, and merge exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

import rlgaf_ray as rl
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
    plain_state,
    save_adapters,
)
from rlgaf_ray.run.checks import check_networks
from tests.families import EXPERTS, FAMILIES, SMALL, Family, save_family

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
SHARED = {**EXPERTS, "n_routed_experts": 4, "moe_intermediate_size": 16, "n_shared_experts": 1}
SHARED |= {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 4}
HYBRID = {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid"] * 2, "num_mem_blocks": 1}
PER_LAYER = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 40, "laurel_rank": 8}
UNUSUAL: dict[
    str, tuple[dict[str, Any], str, str]
] = {  # settings by model_type, names of layers with adapters, and of linear layers without
    "deepseek_v2": (SHARED | LATENT | {"head_dim": 8}, "shared_experts.down_proj", "mlp.gate"),
    "glm4_moe": (SHARED, "shared_experts.gate_proj", "mlp.gate"),
    "gemma3n_text": (
        PER_LAYER
        | {"num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0, 0.0], "intermediate_size": [48] * 2},
        "altup.prediction_coefs",
        "layers.0",
    ),
    "falcon_h1": (MAMBA | {"mamba_d_ssm": 32}, "mamba.in_proj", "mamba.out_proj"),
    "phimoe": (EXPERTS, "self_attn.q_proj", "mlp.router"),
    "zamba2": (
        HYBRID | {"n_mamba_heads": 4, "mamba_headdim": 32, "mamba_expand": 2, "mamba_ngroups": 1, "adapter_rank": 4},
        "mamba.in_proj",
        "self_attn.q_proj",
    ),
    "jamba": (
        EXPERTS
        | {
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
        },
        "mamba.x_proj",
        "mamba.dt_proj",
    ),
}


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
    one = sorted(name.rpartition(".")[2] for name in linear_layers(network))[0]
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


@pytest.mark.parametrize("model_type", UNUSUAL)
def test_experts_and_hybrids_train_push_and_export(model_type: str, tmp_path: Path) -> None:
    settings, adapted, plain = UNUSUAL[model_type]
    ids = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(model_type, **{**SMALL, **ids, **settings})
        network = AutoModelForCausalLM.from_config(config).eval()
    names, before = list(network.state_dict()), logits(network)
    add_adapters(network, SETTINGS, seed=0)
    layers = [name for name, module in network.named_modules() if hasattr(module, "lora_A")]
    assert any(name.endswith(f".{adapted}") for name in layers)
    assert not any(name.endswith(f".{plain}") for name in layers)
    assert torch.equal(logits(network), before)
    move(network)
    output = network(input_ids=TOKENS).logits
    output.square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters() if parameter.requires_grad)
    assert list(plain_state(network)) == names
    export_network(network, tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(again), output.detach(), atol=1e-4, rtol=1e-4)
    assert (output - before).abs().max() > 0.01


DENSE = [family for family in FAMILIES if family.model_type != "gemma3"]  # its vision tower has attention by torch
DENSE.append(Family("Falcon", "falcon", {"head_dim": None}))


@pytest.mark.parametrize("family", DENSE, ids=[family.name for family in DENSE])
def test_every_linear_layer_of_the_blocks_has_an_adapter(family: Family) -> None:
    settings = {key: value for key, value in {**SMALL, **family.settings}.items() if value is not None}
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(AutoConfig.for_model(family.model_type, **settings))
        linear = {name for name, part in network.base_model.named_modules() if isinstance(part, nn.Linear | Conv1D)}
        add_adapters(network, SETTINGS, seed=0)
    assert {name for name, part in network.base_model.named_modules() if hasattr(part, "lora_A")} == linear


def test_layers_that_cannot_have_adapters_raise_before_training(tmp_path: Path) -> None:
    save_family(Family("PhiMoE", "phimoe", EXPERTS), tmp_path)
    lora = ["model.lora.rank=2", "generator.average_decay=0", "rollout.engine=transformers"]
    check_networks(rl.load_config(None, [f"model.generator={tmp_path}", *lora]))
    config = rl.load_config(None, [f"model.generator={tmp_path}", *lora, "model.lora.target_modules=[router]"])
    with pytest.raises(
        UserError, match=r"target_modules names 'router', but .* PhimoeForCausalLM \(phimoe\) are k_pro"
    ):
        check_networks(config)
    empty = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=0, n_head=2))
    with pytest.raises(UserError, match=r"^model\.lora has no linear layer to adapt in GPT2LMHeadModel \(gpt2\): set"):
        add_adapters(empty, SETTINGS, seed=0)
