"""Checks of a model folder before Ray starts: one sentence for each unusable model, without reading weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from rlgaf_ray.config import Config, load_config
from rlgaf_ray.data.encoder import fast_copy
from rlgaf_ray.engines.transformers import check_cached_steps
from rlgaf_ray.errors import UserError
from rlgaf_ray.models.families import NO_ENGINE, attention_for, check_soft_family, scoring_class
from rlgaf_ray.models.folder import check_model, longest_sequence
from rlgaf_ray.models.generator import load_generator
from rlgaf_ray.models.lora import export_network
from rlgaf_ray.models.scalar import ScalarModel
from rlgaf_ray.models.tokenizer import load_tokenizer
from rlgaf_ray.run.checks import check_before_start
from tests.families import FAMILIES, save_family
from tests.families import tokenizer as family_tokenizer
from tests.unit.fuzz import cases, damages, refused_or_done

FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
LLAMA = next(family for family in FAMILIES if family.name == "SmolLM2")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family(LLAMA, tmp_path_factory.mktemp("whole"), tie_word_embeddings=False)


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-99])


def weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def without(*names: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


def refusal(folder: Path) -> str:
    """Return the error of the checks before the run, without the model's name."""
    with pytest.raises(UserError) as error:
        check_before_start(load_config(None, ["rollout.engine=transformers", f"model.generator={folder}"]))
    assert str(error.value).startswith(f"model.generator={folder} ")
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(f"model.generator={folder} ")


def test_a_valid_folder_passes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(None, ["rollout.engine=transformers", f"model.generator={folder}"])
    check_before_start(config)
    check_model("tiny-gpt2")
    check_model("film-reviews")
    monkeypatch.setenv("HOME", str(folder.parent))
    check_model("~/model")
    assert load_generator("~/model").config.hidden_size == 64


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "no-such-method"}, "no-such-method"),
        ({"bits": 4}, "quantization_config"),
    ],
)
def test_quantized_weights_raise(folder: Path, settings: dict[str, Any], method: str) -> None:
    edit(folder / "config.json", quantization_config=settings)
    assert refusal(folder).startswith(f"is quantized ({method}), and quantized weights cannot be trained: use")


def test_an_adapter_folder_raises(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "nowhere", "peft_type": "LORA"}))
    assert refusal(folder).startswith("contains adapters (adapter_config.json): merge them into their base model")


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("bert", "is an encoder (bert)"),
        ("xlm-roberta", "is an encoder (xlm-roberta)"),
        ("bert-generation", "is an encoder (bert-generation)"),
        ("t5", "is an encoder-decoder (t5)"),
        ("bart", "is an encoder-decoder (bart)"),
        ("vit", "is not a causal language model (vit)"),
        ("qwen2_vl", "is not a causal language model (qwen2_vl)"),
        ("mamba", "is not supported: MambaForCausalLM has no key-value cache"),
        ("rwkv", "is not supported: RwkvForCausalLM has no key-value cache"),
        ("openai-gpt", "is not supported: OpenAIGPTLMHeadModel has no key-value cache"),
    ],
)
def test_models_other_than_decoders_with_a_cache_raise(folder: Path, model_type: str, reason: str) -> None:
    AutoConfig.for_model(model_type).save_pretrained(folder)
    assert refusal(folder).startswith(reason)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda f: weights(f, without("model.norm.weight")), "lacks model.norm.weight, which LlamaForCausalLM"),
        (
            lambda f: weights(f, lambda tensors: {f"_orig_mod.{name}": each for name, each in tensors.items()}),
            "lacks lm_head.weight (and 20 more), which LlamaForCausalLM needs: save the bare model",
        ),
        (lambda f: edit(f / "config.json", vocab_size=500), ", 64], but its config.json expects [500, 64]: make the"),
        (lambda f: edit(f / "config.json", hidden_act="no such function"), "cannot be read: "),
        (lambda f: edit(f / "config.json", hidden_size="wide"), "cannot be read: "),
        (lambda f: (f / "config.json").write_text("{"), "cannot be read: "),
        (lambda f: (f / "generation_config.json").write_text("{"), "cannot be read: "),
        (
            lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:"),
            "cannot be read: ",
        ),
        (lambda f: truncate(f / "model.safetensors"), "cannot be read: "),
        (lambda f: (f / "model.safetensors").rename(f / "model-00001-of-00002.safetensors"), "cannot be read: "),
    ],
)  # fmt: skip
def test_broken_model_files_raise(folder: Path, damage: Callable[[Path], object], reason: str) -> None:
    damage(folder)
    assert reason in refusal(folder)


def test_a_missing_shard_raises_with_its_name(folder: Path) -> None:
    load_generator(folder).save_pretrained(folder, max_shard_size="60KB")
    (folder / "model.safetensors").unlink()
    check_model(str(folder))
    last = sorted(folder.glob("model-*.safetensors"))[-1]
    last.unlink()
    assert last.name in refusal(folder)


def test_a_file_instead_of_a_folder_raises(folder: Path) -> None:
    assert refusal(folder / "model.safetensors").startswith("is not a folder: give film-reviews, tiny-gpt2,")


@cases(few=60, full=1500)
@given(st.sampled_from(FILES), damages())
def test_randomly_damaged_files_raise_user_errors(whole: Path, tmp_path: Path, name: str, damage: Any) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "damaged", dirs_exist_ok=True))
    (folder / name).write_bytes(damage((whole / name).read_bytes()))

    def work() -> None:
        check_model(str(folder))
        load_tokenizer(folder)

    refused_or_done(work)


@cases(few=60, full=1000)
@given(st.data())
def test_random_config_values_raise_user_errors(whole: Path, tmp_path: Path, data: st.DataObject) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "changed", dirs_exist_ok=True))
    content = json.loads((whole / "config.json").read_text())
    values = st.sampled_from([None, True, False, 0, 1, -1, 3, 64, 0.5, "", "llama", "text", [], [1], {}, {"a": 1}])
    content |= data.draw(st.dictionaries(st.sampled_from(sorted(content)), values, min_size=1, max_size=3))
    (folder / "config.json").write_text(json.dumps(content))
    refused_or_done(lambda: check_model(str(folder)))


# Generation settings.


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.9, "top_p": 0.6},  # without do_sample
        {"num_beams": 1, "length_penalty": 2.0, "early_stopping": True},
        {"do_sample": True, "temperature": 0.7, "eos_token_id": [2, 5]},
    ],
)
def test_generation_settings_round_trip(folder: Path, settings: dict[str, Any]) -> None:
    edit(folder / "generation_config.json", **settings)
    check_model(str(folder))
    model = load_generator(folder)
    export_network(model, folder / "export")
    written = json.loads((folder / "export" / "generation_config.json").read_text())
    assert {name: written[name] for name in settings} == settings
    assert {name: getattr(load_generator(folder / "export").generation_config, name) for name in settings} == settings


def test_a_model_saved_with_a_router_loss_samples(tmp_path: Path) -> None:
    """``output_router_logits`` is left on by trainers of the loss; with a cache it fails."""
    experts = next(family for family in FAMILIES if family.name == "OLMoE")
    source = save_family(experts, tmp_path / "model", output_router_logits=True)
    model = load_generator(source)
    check_cached_steps(model, "OLMoE")
    export_network(model, tmp_path / "export")
    assert json.loads((tmp_path / "export" / "config.json").read_text())["output_router_logits"] is False
    scalar = ScalarModel.load(source, pooling="mean", pad_token_id=0, seed=1)
    assert not scalar.network.config.output_router_logits


# Sequences.


LONGROPE: dict[str, Any] = {
    "max_position_embeddings": 512,
    "original_max_position_embeddings": 64,
    "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 16, "long_factor": [4.0] * 16},
    "hidden_size": 64,
    "num_attention_heads": 2,
    "pad_token_id": 0,
}
"""As in Phi-3's own config.json."""


@pytest.mark.parametrize(
    ("model_type", "settings", "expected"),
    [
        ("gpt2", {"n_positions": 77}, 77),
        ("llama", {"max_position_embeddings": 99}, 99),
        ("mpt", {"max_seq_len": 55}, 55),
        ("bloom", {}, None),  # ALiBi has no limit
        ("bloom", {"seq_length": 44}, 44),  # as BLOOM's own config.json has it
        ("phi3", LONGROPE, 64),
        ("gemma3", {"text_config": {"max_position_embeddings": 88}}, 88),
    ],
)
def test_longest_sequence(model_type: str, settings: dict[str, Any], expected: int | None) -> None:
    assert longest_sequence(AutoConfig.for_model(model_type, **settings)) == expected


def test_longrope_is_limited_to_its_original_length(tmp_path: Path) -> None:
    phi = next(family for family in FAMILIES if family.name == "Phi-3")
    source = save_family(phi, tmp_path, **LONGROPE)
    model, ids = load_generator(source), torch.arange(100, 165)[None]
    with torch.no_grad():
        short, long = (model(ids[:, :length]).logits[:, :64] for length in (64, 65))
    assert not torch.allclose(short, long, atol=1e-2)
    words = ["rollout.engine=transformers", f"model.generator={source}", "task.prompt_tokens=32"]
    check_before_start(load_config(None, [*words, "task.response_tokens=32"]))
    with pytest.raises(UserError, match=r"takes 64 tokens with one set of LongRoPE factors \(.*\), but task\.prompt"):
        check_before_start(load_config(None, [*words, "task.response_tokens=33"]))


def test_a_model_without_a_length_limit_accepts_any_length(tmp_path: Path) -> None:
    bloom = next(family for family in FAMILIES if family.name == "BLOOM")
    source = save_family(bloom, tmp_path, max_position_embeddings=None)
    words = ["rollout.engine=transformers", f"model.generator={source}", "task.response_tokens=5000"]
    check_before_start(load_config(None, words))


# Requirements on a family.


SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "is_decoder": True,
}
OF_TYPE: dict[str, dict[str, Any]] = {
    "cpmant": {"dim_head": 32},
    "git": {"vision_config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}},
    "minimax": {"num_local_experts": 2},
    "recurrent_gemma": {"lru_width": 64},
    "trocr": {"d_model": 64, "decoder_layers": 2, "decoder_attention_heads": 2},
}


def random_model(model_type: str, **settings: Any) -> PreTrainedModel:
    """Return a small model with logits spread wide enough that every token matters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SMALL | settings)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.1)
    return model


@pytest.mark.parametrize("model_type", NO_ENGINE)
def test_unsupported_families_raise_by_their_config(model_type: str, tmp_path: Path) -> None:
    """Each of these families also fails the engine's check at its start."""
    model = random_model(model_type, **OF_TYPE.get(model_type, {}))
    with pytest.raises(UserError, match=r"is not supported by rollout\.engine=transformers"):
        check_cached_steps(model, "it")
    model.config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    for engine in ("transformers", "vllm"):
        with pytest.raises(UserError) as error:
            check_before_start(load_config(None, [f"rollout.engine={engine}", f"model.generator={tmp_path}"]))
        assert str(error.value) == (
            f"model.generator={tmp_path} is not supported ({model_type}): {NO_ENGINE[model_type]}: use a "
            "transformer such as Llama or Qwen"
        )


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [
        *((name, "sdpa") for name in ("llama", "gpt2", "gemma3")),
        *((name, "eager") for name in ("gemma2", "gpt_oss", "bloom")),
    ],
)
def test_attention_is_fused_where_it_is_correct(model_type: str, expected: str) -> None:
    config = AutoConfig.for_model(model_type)
    assert attention_for(config, torch.device("cuda")) == expected
    assert attention_for(config, torch.device("cpu")) == "eager"


def test_sdpa_ignores_gemma_2s_soft_capping(tmp_path: Path) -> None:
    """The reason for the exception in ``attention_for``, which can be removed once this test fails."""
    gemma = next(family for family in FAMILIES if family.name == "Gemma 2")
    source = save_family(gemma, tmp_path, attn_logit_softcapping=0.5)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        logits = [
            AutoModelForCausalLM.from_pretrained(source, attn_implementation=name).eval()(ids).logits
            for name in ("eager", "sdpa")
        ]
        ours = load_generator(source)(ids).logits
    assert not torch.allclose(logits[0], logits[1], atol=1e-3)
    torch.testing.assert_close(ours, logits[0])


def test_falcons_eager_attention_adds_alibi_twice(tmp_path: Path) -> None:
    """The reason for its exception in ``attention_for``, which can be removed once this test fails."""
    random_model("falcon", alibi=True, multi_query=False).save_pretrained(tmp_path)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        default, eager = [
            AutoModelForCausalLM.from_pretrained(tmp_path, **options).eval()(ids).logits
            for options in ({}, {"attn_implementation": "eager"})
        ]
        ours = load_generator(tmp_path)(ids).logits
    assert not torch.allclose(eager, default, atol=1e-3)
    torch.testing.assert_close(ours, default)
    check_cached_steps(load_generator(tmp_path), "Falcon")


def test_soft_tokens_need_a_family_without_per_layer_embeddings() -> None:
    check_soft_family("a", AutoConfig.for_model("gemma3_text"))
    with pytest.raises(
        UserError, match=r"generator\.algorithm=gumbel feeds .*generator=a \(gemma3n_text\) reads token"
    ):
        check_soft_family("a", AutoConfig.for_model("gemma3n_text"))


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "gemma2", "gemma3_text", "opt", "bloom", "falcon", "gpt_oss"])
def test_families_with_a_classifier_use_it(model_type: str) -> None:
    assert scoring_class(AutoConfig.for_model(model_type, num_hidden_layers=1)) is None


def test_a_broken_tokenizer_raises(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": {"type": "nothing"}}')
    with pytest.raises(UserError, match=r"the tokenizer of .* cannot be read: "):
        load_tokenizer(folder)


def test_a_mistral_with_both_formats_loads_its_hugging_face_tokenizer(tmp_path: Path) -> None:
    """transformers would read tekken.json if mistral_common is installed, as vLLM requires."""
    mistral = next(family for family in FAMILIES if family.name == "Mistral")
    (save_family(mistral, tmp_path) / "tekken.json").write_text("{}")
    assert fast_copy(load_tokenizer(tmp_path)).get_vocab_size() == len(family_tokenizer(mistral))


def test_the_padding_token_defaults_to_end_of_text(folder: Path) -> None:
    """Llama 3's tokenizer has none."""
    edit(folder / "tokenizer_config.json", pad_token=None)
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.pad_token_id, tokenizer.eos_token) == (tokenizer.eos_token_id, "</s>")


def test_a_tokenizer_without_end_of_text_raises(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", eos_token=None)
    with pytest.raises(UserError, match=r"has no end-of-text token: set eos_token in its tokenizer_config\.json"):
        load_tokenizer(folder)


def test_a_token_without_an_embedding_raises(folder: Path) -> None:
    """It raises for every command, before weights are loaded."""
    size = AutoConfig.from_pretrained(folder).vocab_size
    words = load_tokenizer(folder)
    words.add_special_tokens({"pad_token": "[PAD]"})
    words.save_pretrained(folder)
    assert refusal(folder).startswith(f"has {size} embeddings and its tokenizer {size + 1} tokens: '[PAD]' (pad_token)")


@pytest.mark.parametrize("home", ["~no-such-user", "~"])
def test_a_missing_home_folder_raises(home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=rf"^model\.generator={home}/model does not exist: give film-reviews"):
        check_model(f"{home}/model")


# The hub.


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An unreachable hub whose cache has org/model without weights."""
    cached = tmp_path / "hub" / "models--org--model"
    shutil.copytree(folder, cached / "snapshots" / "abc")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    (cached / "snapshots" / "abc" / "model.safetensors").unlink()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return cached / "snapshots" / "abc"


def of_the_hub(*more: str) -> Config:
    return load_config(None, ["rollout.engine=transformers", "model.generator=org/model", *more])


def answers(*names: str) -> Callable[..., list[str]]:
    return lambda hub, source: [*names, "config.json"]


def test_a_hub_model_is_checked_by_its_file_names(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = r"org/model has no weights in the local hub cache, and the hub is not reachable: download it first"
    with pytest.raises(UserError, match=message):
        check_before_start(of_the_hub())
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", answers("pytorch_model.bin"))
    with pytest.raises(UserError, match=r"org/model has no \*\.safetensors on the hub: use a model with safetensors"):
        check_before_start(of_the_hub())
    check_before_start(of_the_hub("model.allow_pickle=true"))
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", answers("model.safetensors"))
    check_before_start(of_the_hub())


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda f: edit(f / "config.json", hidden_act="no such function"), "cannot be read: "),
        (lambda f: edit(f / "config.json", num_attention_heads=0), "cannot be read: "),
        (lambda f: (f / "generation_config.json").write_text("{"), "cannot be read: "),
        (lambda f: (f / "tokenizer.json").write_text("{"), "the tokenizer of org/model cannot be read: "),
        (lambda f: edit(f / "config.json", vocab_size=2), "has 2 embeddings and its tokenizer "),
    ],
)
def test_broken_hub_files_raise(
    hub: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], object], reason: str
) -> None:
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", answers("model.safetensors"))
    damage(hub)
    with pytest.raises(UserError, match=reason):
        check_before_start(of_the_hub())
