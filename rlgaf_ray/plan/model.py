"""Shape of a config's generator, from its architecture on the meta device, without weights."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from rlgaf_ray.config.schema import Config
from rlgaf_ray.errors import UserError
from rlgaf_ray.models.folder import read_config
from rlgaf_ray.models.generator import FROM_SCRATCH_VOCABULARY, SEQGAN_LSTM, TINY_GPT2, build_tiny_gpt2
from rlgaf_ray.plan.shape import ModelShape


def generator_shape(config: Config) -> ModelShape:
    """Return the shape. Raises ``UserError`` if the model is not a decoder with identical, dense blocks."""
    source = config.model.generator
    if source == SEQGAN_LSTM or not config.discriminator.traits.scalar_head:
        raise UserError(
            "rlgaf plan supports transformers with scalar heads only: set discriminator.architecture=generator, and "
            "model.generator to a transformer"
        )
    with torch.device("meta"):
        if source == TINY_GPT2:
            model: PreTrainedModel = build_tiny_gpt2(vocab_size=FROM_SCRATCH_VOCABULARY, end_of_text_id=0, seed=0)
        else:
            trusted = config.model.trust_remote_code
            described = read_config(source, trust_remote_code=trusted)
            model = AutoModelForCausalLM.from_config(described, trust_remote_code=trusted)
    return shape_of(model)


def shape_of(model: PreTrainedModel) -> ModelShape:
    """Return a model's shape. Raises ``UserError`` if it is a mixture of experts."""
    settings: PreTrainedConfig = model.config.get_text_config()
    names = [name for name, _ in model.named_parameters()]
    if any("experts" in name for name in names):
        raise UserError(f"{type(model).__name__} is a mixture of experts: rlgaf plan supports dense models only")
    width, heads = settings.hidden_size, settings.num_attention_heads
    feed_forward = getattr(settings, "intermediate_size", None) or getattr(settings, "n_inner", None) or 4 * width
    return ModelShape(
        parameters=sum(weight.numel() for weight in model.parameters()),  # tied weights counted once
        layers=settings.num_hidden_layers,
        width=width,
        heads=heads,
        kv_heads=getattr(settings, "num_key_value_heads", None) or heads,
        head_size=getattr(settings, "head_dim", None) or width // heads,
        feed_forward=feed_forward,
        gated=any("gate_proj" in name or "gate_up_proj" in name for name in names),
        vocabulary=settings.vocab_size,
        tied=bool(settings.tie_word_embeddings),
        composed=getattr(settings, "activation_function", "") == "gelu_new",
    )
