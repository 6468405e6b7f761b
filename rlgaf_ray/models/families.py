"""What a family of models must offer, by its config alone, and the network that scores with its decoder.

docs/models.md lists what follows from it.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
)

from rlgaf_ray.errors import UserError

SCALED_LOGITS = ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier")
"""What families call what they do to the output layer's result."""
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
"""What families call the number of a layer's experts."""
ROBERTA = (
    *("camembert", "data2vec-text", "roberta", "roberta-prelayernorm"),
    *("xlm-roberta", "xlm-roberta-xl"),
)
NO_ENGINE = {
    "cpmant": "it puts tokens of its own before the prompt",
    "git": "it reads images before the text",
    "minimax": "it takes only a key-value cache of its own type",
    "recurrent_gemma": "its recurrent layers read padding",
    "trocr": "it is the decoder of a model that reads images",
    "xmod": "it needs the language of each text",
    **dict.fromkeys(ROBERTA, "its positions depend on padding"),
}
"""Decoders, by ``model_type``, that neither engine can sample a batch from, and why."""


def check_family(source: str, config: PreTrainedConfig) -> None:
    """Refuse a model that is quantized, no decoder with a key-value cache, or that no engine samples from.

    A class that comes with the folder (``trust_remote_code``) is not looked into.

    Raises:
        UserError: what it is, and what to take instead.
    """
    name = f"model.generator={source}"
    if method := quantization(config):
        raise UserError(
            f"{name} is quantized ({method}), and quantized weights cannot be trained: take the model that it was "
            "made from, or dequantize it and save that"
        )
    if config.is_encoder_decoder:
        raise UserError(f"{name} is an encoder-decoder ({config.model_type}): take a decoder such as Llama or Qwen")
    reads_both_ways = type(config) in MODEL_FOR_MASKED_LM_MAPPING or config.model_type == "bert-generation"
    if reads_both_ways and getattr(config, "is_decoder", True) is False:
        raise UserError(
            f"{name} is an encoder ({config.model_type}), whose tokens see those after them: take a decoder such as "
            "Llama or Qwen, or set is_decoder in its config.json where it was trained as one"
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
            return
        raise UserError(
            f"{name} is no causal language model ({config.model_type}): take a decoder such as Llama or Qwen"
        )
    model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if "past_key_values" not in inspect.signature(model.forward).parameters:
        raise UserError(
            f"{name} cannot be sampled from here: {model.__name__} keeps no keys and values of the tokens before "
            "(past_key_values): take a transformer such as Llama or Qwen"
        )
    if reason := NO_ENGINE.get(config.model_type):
        raise UserError(
            f"{name} cannot be sampled from here ({config.model_type}): {reason}: take a transformer such as Llama or "
            "Qwen"
        )


def check_soft_family(source: str, config: PreTrainedConfig) -> None:
    """Raise ``UserError`` for a family that looks embeddings up in every layer: it cannot be fed mixtures of them."""
    if getattr(config.get_text_config(), "hidden_size_per_layer_input", 0):
        raise UserError(
            f"generator.algorithm=gumbel feeds mixtures of embeddings, and model.generator={source} "
            f"({config.model_type}) reads token ids in every layer: take another model, or another generator.algorithm"
        )


def check_linear_logits(source: str, config: PreTrainedConfig, key: str, remedy: str) -> None:
    """Raise ``UserError`` where ``key`` needs logits that are a linear layer of the last hidden states, and they are
    scaled or soft-capped. ``check_output_layer`` finds it of any network, once it is loaded."""
    text = config.get_text_config()
    for name in SCALED_LOGITS:
        if getattr(text, name, None) not in (None, 0, 1):
            raise UserError(
                f"{key} needs logits that are a linear layer of the last hidden states, and model.generator={source} "
                f"({config.model_type}) has {name}={getattr(text, name)}: {remedy}"
            )


@torch.no_grad()
def check_output_layer(
    model: PreTrainedModel, key: str = "learner.logprob_chunk_tokens", remedy: str = "set it to null"
) -> None:
    """Refuse a model whose logits are more than its output layer of its last hidden states, as ``key`` needs them."""
    fits = model.base_model is not model
    if fits:
        token_ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
        hidden = model.base_model(input_ids=token_ids, use_cache=False).last_hidden_state
        logits = model(input_ids=token_ids, use_cache=False).logits
        fits = torch.allclose(model.get_output_embeddings()(hidden), logits, rtol=1e-4, atol=1e-4)
    if not fits:
        raise UserError(
            f"{key} needs logits that are a linear layer of the last hidden states, and those of "
            f"{type(model).__name__} are not: {remedy}"
        )


def check_vllm(source: str, config: PreTrainedConfig, *, on_cpu: bool) -> None:
    """Raise ``UserError`` for a family that vLLM 0.32 does not start, or whose new weights it does not use."""
    text = config.get_text_config()
    layers = set(getattr(text, "layer_types", None) or ())
    reasons = {
        "has experts, whose new weights do not take effect in vLLM": any(
            (getattr(text, name, None) or 0) > 1 for name in EXPERTS
        ),
        "has a tied output layer that vLLM takes no weights for": config.model_type == "bloom",
        "has layers without keys and values, which vLLM on CPU does not start with": on_cpu
        and any(layer == "linear_attention" or not layer.endswith("attention") for layer in layers),
        "reads images, and was not tested with vLLM": text is not config,
    }
    for reason in (reason for reason, holds in reasons.items() if holds):
        raise UserError(
            f"model.generator={source} ({config.model_type}) {reason}: set rollout.engine=transformers, or take "
            "another model"
        )


def quantization(config: PreTrainedConfig) -> str | None:
    """The method by which the weights were quantized, or None."""
    settings: Any = getattr(config, "quantization_config", None)
    settings = settings or getattr(config.get_text_config(), "quantization_config", None)
    if not settings:
        return None
    method = settings.get("quant_method") if isinstance(settings, dict) else getattr(settings, "quant_method", None)
    return str(getattr(method, "value", method) or "quantization_config")


def attention_for(config: PreTrainedConfig, device: torch.device) -> str:
    """The attention that computes what the config asks for, and fast.

    On CPU plain matrix products train a fifth faster than fused attention at lengths up to 128 (measured). Elsewhere
    it is fused, where the class has that (GPT-OSS and BLOOM do not) and its scores are not soft-capped: ``sdpa`` leaves
    Gemma 2's cap out without a word.
    """
    causal = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    fused = getattr(causal, "_supports_sdpa", True)
    if device.type == "cpu" or not fused or getattr(config.get_text_config(), "attn_logit_softcapping", None):
        return "eager"
    return "sdpa"


def scoring_class(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """The decoder with a linear ``score``, where transformers has no such class of this family; None where it does.

    Raises:
        UserError: transformers has no base model of the family, either.
    """
    if "AutoModelForSequenceClassification" in (getattr(config, "auto_map", None) or {}):
        return None
    known: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
    if known is not None and _has_score(known, config):
        return None
    if type(config) not in MODEL_MAPPING or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(
            f"transformers has no base model of {config.model_type} to put a scalar head on: "
            "set discriminator.architecture=generative or cnn, or take a decoder such as Llama or Qwen"
        )
    return _scoring_class(type(config))  # type: ignore[arg-type]  # a class is hashable


def _has_score(kind: type[PreTrainedModel], config: PreTrainedConfig) -> bool:
    if issubclass(kind, GenericForSequenceClassification):
        return True
    with torch.device("meta"):
        return isinstance(getattr(kind(config), "score", None), nn.Linear)


@cache
def _scoring_class(config_class: type[PreTrainedConfig]) -> type[PreTrainedModel]:
    """As transformers itself makes the classifiers of most decoders."""
    causal: Any = MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
    family = next(each for each in causal.__mro__ if not issubclass(each, GenerationMixin))
    name = f"{causal.__name__.removesuffix('ForCausalLM')}ForSequenceClassification"
    names = {"base_model_prefix": family.base_model_prefix, "__module__": __name__}
    return type(name, (GenericForSequenceClassification, family), names)
