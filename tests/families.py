"""A two-layer random model of each family of docs/models.md, with a byte-level BPE of its own, without a download."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

BOS, EOS, PAD, EOT = "<s>", "</s>", "<pad>", "<|eot_id|>"
POSITIONS = 512
MARKER = re.compile(r"<\|[A-Za-z_]+\|>|<(?:start|end)_of_turn>")
"""The special tokens that a chat template writes."""
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}


@dataclass(frozen=True)
class Family:
    """``vllm``: why vLLM on CPU does not take it; empty where it does."""

    name: str  # as in docs/models.md
    model_type: str  # as in config.json
    settings: Mapping[str, Any] = field(default_factory=dict)  # of its config, beside ``SMALL``
    template: str = ""  # of those that TRL ships
    end: str = EOS  # what ends an answer
    vllm: str = ""

    @property
    def chat_template(self) -> str | None:
        return (files("trl") / "chat_templates" / f"{self.template}.jinja").read_text() if self.template else None


SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,  # the smallest that vLLM takes on CPU
    "max_position_embeddings": POSITIONS,
}
SLIDING = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}

LLAMA_3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
GEMMA = {**SLIDING, "query_pre_attn_scalar": 32}
VISION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 32}
IMAGES = {
    "text_config": GEMMA,
    "vision_config": {**VISION, "image_size": 28, "patch_size": 14},
    **{"mm_tokens_per_image": 4, "image_token_index": 5, "boi_token_index": 6, "eoi_token_index": 7},
}
GRANITE = {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "logits_scaling": 8.0}
TIED = {"tie_word_embeddings": True}

FAMILIES = [
    Family("GPT-2", "gpt2"),
    Family("Llama 3", "llama", {"rope_parameters": LLAMA_3 | {"original_max_position_embeddings": 64}}, "llama3", EOT),
    Family("Qwen2.5", "qwen2", TIED, "qwen2_5", "<|im_end|>"),
    Family("Qwen3", "qwen3", TIED, "qwen3", "<|im_end|>"),
    Family("Gemma 2", "gemma2", GEMMA, "gemma", "<end_of_turn>"),
    Family("Gemma 3", "gemma3_text", GEMMA, "gemma3", "<end_of_turn>"),
    Family("Gemma 3 with images", "gemma3", IMAGES, "gemma3", "<end_of_turn>", vllm="not tested"),
    Family("Phi-3", "phi3", {}, "phi3", "<|end|>"),
    Family("SmolLM2", "llama", TIED),
    Family("OPT", "opt", {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    Family("Mistral", "mistral", {"sliding_window": 16}),
    Family("Granite", "granite", GRANITE),
    Family("OLMo 2", "olmo2"),
    Family("GPT-OSS", "gpt_oss", {**SLIDING, **EXPERTS}, "gptoss", "<|return|>", "no: experts"),
    Family("BLOOM", "bloom", vllm="no: its output layer"),
    Family("OLMoE", "olmoe", EXPERTS, vllm="no: experts"),
    Family("Cohere", "cohere", {}, "cohere", "<|END_OF_TURN_TOKEN|>"),
    Family("LFM2", "lfm2", {"layer_types": ["conv", "full_attention"]}, "lfm2", "<|im_end|>", "no: convolutions"),
]
"""The rows of docs/models.md."""


def tokenizer(family: Family, vocab_size: int = 320) -> PreTrainedTokenizerFast:
    """Every byte is a token, and so is each marker of the family's chat template; beside them a few merges."""
    template = family.chat_template
    markers = sorted({*MARKER.findall(template or ""), family.end} - {EOS})
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS, *markers],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(
        ["what is two plus two? two plus two is four", "what is three plus one? it is four"], trainer
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=BOS, eos_token=family.end, pad_token=PAD)
    wrapped.chat_template = template
    return wrapped


def save_family(family: Family, folder: Path, *, seed: int = 0, spare_embeddings: int = 0, **settings: Any) -> Path:
    """Write the model and its tokenizer. Its logits are spread wide enough that every token matters.

    Args:
        spare_embeddings: rows of the embedding beyond the tokenizer's tokens.
    """
    words = tokenizer(family)
    small = dict(SMALL)
    ids = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    small |= ids | {"vocab_size": len(words) + spare_embeddings}
    more = dict(family.settings) | settings
    nested = ids | more | {"text_config": small | more["text_config"]} if "text_config" in more else small | more
    config = AutoConfig.for_model(family.model_type, **nested)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.1)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
