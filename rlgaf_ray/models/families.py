"""Check by its config whether a model family is supported, and choose its attention and scoring class.

docs/models.md lists the supported families.
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
"""Config keys of families that scale or soft-cap their logits."""
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
"""Config keys of the number of experts per layer."""
ROBERTA = (
    *("camembert", "data2vec-text", "roberta", "roberta-prelayernorm"),
    *("xlm-roberta", "xlm-roberta-xl"),
)
NO_ENGINE = {
    "cpmant": "it adds its own tokens before the prompt",
    "git": "it reads images before the text",
    "minimax": "it accepts only its own type of key-value cache",
    "recurrent_gemma": "its recurrent layers read padding",
    "trocr": "it is the decoder of a model that reads images",
    "xmod": "it needs the language of each text",
    **dict.fromkeys(ROBERTA, "its positions depend on padding"),
}
"""Decoders by ``model_type`` that no engine can sample a batch from, with the reason."""


def check_family(source: str, config: PreTrainedConfig) -> None:
    """Raise ``UserError`` unless the model is an unquantized decoder with a KV cache that an engine can sample from.

    A custom class of the folder (``trust_remote_code``) is accepted unchecked.
    """
    name = f"model.generator={source}"
    if method := quantization(config):
        raise UserError(
            f"{name} is quantized ({method}), and quantized weights cannot be trained: use the original model, or "
            "dequantize this one and save it"
        )
    if config.is_encoder_decoder:
        raise UserError(f"{name} is an encoder-decoder ({config.model_type}): use a decoder such as Llama or Qwen")
    reads_both_ways = type(config) in MODEL_FOR_MASKED_LM_MAPPING or config.model_type == "bert-generation"
    if reads_both_ways and getattr(config, "is_decoder", True) is False:
        raise UserError(
            f"{name} is an encoder ({config.model_type}) with bidirectional attention: use a decoder such as Llama or "
            "Qwen, or set is_decoder in its config.json if it was trained as one"
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
            return
        raise UserError(
            f"{name} is not a causal language model ({config.model_type}): use a decoder such as Llama or Qwen"
        )
    model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if "past_key_values" not in inspect.signature(model.forward).parameters:
        raise UserError(
            f"{name} is not supported: {model.__name__} has no key-value cache (past_key_values): use a transformer "
            "such as Llama or Qwen"
        )
    if reason := NO_ENGINE.get(config.model_type):
        raise UserError(
            f"{name} is not supported ({config.model_type}): {reason}: use a transformer such as Llama or Qwen"
        )


def check_soft_family(source: str, config: PreTrainedConfig) -> None:
    """Raise ``UserError`` for a family that looks up embeddings in every layer, which cannot read soft tokens."""
    if getattr(config.get_text_config(), "hidden_size_per_layer_input", 0):
        raise UserError(
            f"generator.algorithm=gumbel feeds mixtures of embeddings, but model.generator={source} "
            f"({config.model_type}) reads token ids in every layer: use another model or generator.algorithm"
        )


def check_linear_logits(source: str, config: PreTrainedConfig, key: str, remedy: str) -> None:
    """Raise ``UserError`` if the config scales or soft-caps the logits, which ``key`` needs to be linear.

    ``check_output_layer`` checks a loaded network of any family.
    """
    text = config.get_text_config()
    for name in SCALED_LOGITS:
        if getattr(text, name, None) not in (None, 0, 1):
            raise UserError(
                f"{key} needs logits that are a linear layer of the last hidden states, but model.generator={source} "
                f"({config.model_type}) has {name}={getattr(text, name)}: {remedy}"
            )


@torch.no_grad()
def check_output_layer(
    model: PreTrainedModel, key: str = "learner.logprob_chunk_tokens", remedy: str = "set it to null"
) -> None:
    """Raise ``UserError`` unless the logits equal the output layer of the last hidden states, as ``key`` needs."""
    fits = model.base_model is not model
    if fits:
        token_ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
        hidden = model.base_model(input_ids=token_ids, use_cache=False).last_hidden_state
        logits = model(input_ids=token_ids, use_cache=False).logits
        fits = torch.allclose(model.get_output_embeddings()(hidden), logits, rtol=1e-4, atol=1e-4)
    if not fits:
        raise UserError(
            f"{key} needs logits that are a linear layer of the last hidden states, but those of "
            f"{type(model).__name__} are not: {remedy}"
        )


def check_vllm(source: str, config: PreTrainedConfig, *, on_cpu: bool) -> None:
    """Raise ``UserError`` for a family that vLLM 0.32 cannot start, or whose weight updates have no effect there."""
    text = config.get_text_config()
    layers = set(getattr(text, "layer_types", None) or ())
    reasons = {
        "has experts, whose weight updates have no effect in vLLM": any(
            (getattr(text, name, None) or 0) > 1 for name in EXPERTS
        ),
        "has a tied output layer that vLLM cannot update": config.model_type == "bloom",
        "has layers without keys and values, which vLLM on CPU cannot start": on_cpu
        and any(layer == "linear_attention" or not layer.endswith("attention") for layer in layers),
        "reads images, and was not tested with vLLM": text is not config,
    }
    for reason in (reason for reason, holds in reasons.items() if holds):
        raise UserError(
            f"model.generator={source} ({config.model_type}) {reason}: set rollout.engine=transformers, or use "
            "another model"
        )


def quantization(config: PreTrainedConfig) -> str | None:
    """Return the quantization method of the weights, or None."""
    settings: Any = getattr(config, "quantization_config", None)
    settings = settings or getattr(config.get_text_config(), "quantization_config", None)
    if not settings:
        return None
    method = settings.get("quant_method") if isinstance(settings, dict) else getattr(settings, "quant_method", None)
    return str(getattr(method, "value", method) or "quantization_config")


def attention_for(config: PreTrainedConfig, device: torch.device) -> str:
    """Choose the fastest correct attention implementation.

    On CPU ``eager`` trains 20% faster than ``sdpa`` at lengths up to 128 (measured). Elsewhere it is ``sdpa``, except
    for classes without it (GPT-OSS, BLOOM) and soft-capped scores: ``sdpa`` silently ignores Gemma 2's soft-capping.
    Falcon's ``eager`` adds ALiBi twice.
    """
    if config.model_type == "falcon" and getattr(config, "alibi", False):
        return "sdpa"
    causal = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    fused = getattr(causal, "_supports_sdpa", True)
    if device.type == "cpu" or not fused or getattr(config.get_text_config(), "attn_logit_softcapping", None):
        return "eager"
    return "sdpa"


def scoring_class(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """Build a sequence classifier with a linear ``score`` for this family; None if transformers already has one.

    Raises:
        UserError: transformers has no base model of the family.
    """
    if "AutoModelForSequenceClassification" in (getattr(config, "auto_map", None) or {}):
        return None
    known: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
    if known is not None and _has_score(known, config):
        return None
    if type(config) not in MODEL_MAPPING or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(
            f"transformers has no base model of {config.model_type} to put a scalar head on: "
            "set discriminator.architecture=generative or cnn, or use a decoder such as Llama or Qwen"
        )
    return _scoring_class(type(config))  # type: ignore[arg-type]  # a class is hashable


def _has_score(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> bool:
    if issubclass(model_class, GenericForSequenceClassification):
        return True
    with torch.device("meta"):
        return isinstance(getattr(model_class(config), "score", None), nn.Linear)


@cache
def _scoring_class(config_class: type[PreTrainedConfig]) -> type[PreTrainedModel]:
    """Build the class as transformers does for most decoders.

    Its code counts as transformers' own: of custom code, ``from_pretrained`` leaves non-persistent buffers
    uninitialised, such as Falcon-H1's ``mup_vector``.
    """
    causal: Any = MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
    family = next(each for each in causal.__mro__ if not issubclass(each, GenerationMixin))
    name = f"{causal.__name__.removesuffix('ForCausalLM')}ForSequenceClassification"
    own = classmethod(lambda cls: False)
    names = {"base_model_prefix": family.base_model_prefix, "__module__": __name__, "is_custom_code": own}
    return type(name, (GenericForSequenceClassification, family), names)
