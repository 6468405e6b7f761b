"""SeqGAN's generator (Yu et al. 2017, arXiv 1609.05473): an LSTM language model, as a transformers model."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.cache_utils import LinearAttentionLayer
from transformers.modeling_outputs import CausalLMOutputWithPast


class LstmConfig(PreTrainedConfig):
    """Sizes of ``LstmForCausalLM``; the defaults are those of SeqGAN's synthetic experiment."""

    model_type = "rlgaf_lstm"

    def __init__(
        self,
        vocab_size: int = 5000,
        embedding_size: int = 32,
        hidden_size: int = 32,
        max_position_embeddings: int = 1024,
        initializer_range: float = 0.1,
        bos_token_id: int | None = 0,
        eos_token_id: int | None = 0,
        pad_token_id: int | None = 0,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size
        self.hidden_size = hidden_size
        # An LSTM has no positions: the bound only tells engines which requests to refuse.
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        # One layer that carries a state and no keys: with it, the library's DynamicCache holds what an LSTM remembers.
        self.num_hidden_layers = 1
        self.layer_types = ["linear_attention"]
        token_ids = {"bos_token_id": bos_token_id, "eos_token_id": eos_token_id, "pad_token_id": pad_token_id}
        super().__init__(**{"tie_word_embeddings": False, **kwargs, **token_ids})


class LstmForCausalLM(PreTrainedModel, GenerationMixin):
    """Embedding, one LSTM layer, and a linear layer over the vocabulary.

    It is called as any causal LM of the library. Its cache is a ``DynamicCache(config=model.config)`` whose only layer
    holds the hidden and the cell state side by side, [B, 2H]. Padding, on the left or on the right, is not read: the
    state after a padded prompt is the state after the prompt.
    """

    config_class = LstmConfig
    base_model_prefix = "model"
    _input_embed_layer = "embedding"
    _is_stateful = True  # a state cannot be cut back to an earlier token

    def __init__(self, config: LstmConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size)
        self.lstm = nn.LSTM(config.embedding_size, config.hidden_size, batch_first=True)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Everything from N(0, initializer_range^2), as SeqGAN; the LSTM's second bias, which is redundant, at zero."""
        for name, parameter in module.named_parameters(recurse=False):
            if name.startswith("bias_hh"):
                init.zeros_(parameter)
            else:
                init.normal_(parameter, mean=0.0, std=self.config.initializer_range)

    def forward(
        self,
        input_ids: Int[Tensor, "batch time"] | None = None,
        attention_mask: Int[Tensor, "batch past_and_time"] | None = None,
        position_ids: Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        inputs_embeds: Float[Tensor, "batch time embedding"] | None = None,
        labels: Int[Tensor, "batch time"] | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Int[Tensor, " kept"] = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of the next token, [B, T, V], or only at the kept positions.

        ``attention_mask`` covers what the cache has seen and the new tokens; its zeros stand before or after a row's
        tokens, never between them. ``position_ids`` are not needed. Raises ValueError for a row without any token.
        """
        if not use_cache:
            past_key_values = None
        elif past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        embedded = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        # The recurrence is small beside the vocabulary, and CPUs run it in bfloat16 only with special instructions:
        # under autocast it keeps the weights' own precision, and the layer over the vocabulary has the lower one.
        with torch.autocast(embedded.device.type, enabled=False):
            hidden = self._hidden(embedded.to(self.dtype), attention_mask, past_key_values)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)

    def _hidden(
        self, embedded: Tensor, attention_mask: Tensor | None, cache: DynamicCache | None
    ) -> Float[Tensor, "batch time hidden"]:
        """The LSTM's output at every new token; the cache, if any, then holds the state after them."""
        state = None if cache is None else _state(cache)
        mask = None if attention_mask is None else attention_mask[:, -embedded.shape[1] :].bool()
        if mask is None or bool(mask.all()):
            hidden, last = self.lstm(embedded, state)
        else:
            hidden, last = self._without_padding(embedded, mask, state)
        if cache is not None:
            cache.update_recurrent_state(torch.cat([last[0][0], last[1][0]], -1), 0)
        return hidden

    def _without_padding(
        self, embedded: Tensor, mask: Tensor, state: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The LSTM over each row's tokens alone: [B, T, H], of any value at padding, and the state after them."""
        lengths = mask.sum(1)
        if not bool(lengths.all()):
            raise ValueError("a row of the attention mask has no token: give every prompt at least one")
        size, num_tokens = mask.shape
        first = mask.int().argmax(1, keepdim=True)
        steps = torch.arange(num_tokens, device=mask.device).expand(size, -1)
        rows = torch.arange(size, device=mask.device)[:, None]
        to_the_left = embedded[rows, (steps + first).clamp(max=num_tokens - 1)]
        packed = nn.utils.rnn.pack_padded_sequence(to_the_left, lengths.cpu(), batch_first=True, enforce_sorted=False)
        hidden, last = self.lstm(packed, state)
        hidden, _ = nn.utils.rnn.pad_packed_sequence(hidden, batch_first=True, total_length=num_tokens)
        return hidden[rows, (steps - first).clamp(min=0)], last


def _state(cache: DynamicCache) -> tuple[Tensor, Tensor] | None:
    """Hidden and cell state, [1, B, H] each, or none where the cache has not seen a token."""
    layer = cache.layers[0]
    assert isinstance(layer, LinearAttentionLayer)
    both = layer.recurrent_states[0]
    if both is None:
        return None
    hidden, cell = both[None].chunk(2, -1)
    return hidden.contiguous(), cell.contiguous()


AutoConfig.register("rlgaf_lstm", LstmConfig)
AutoModelForCausalLM.register(LstmConfig, LstmForCausalLM)


def build_lstm(
    *,
    vocab_size: int,
    end_of_text_id: int,
    seed: int,
    embedding_size: int = 32,
    hidden_size: int = 32,
    initializer_range: float = 0.1,
) -> LstmForCausalLM:
    """SeqGAN's LSTM, freshly drawn from N(0, initializer_range^2); with a range of 1 it is SeqGAN's oracle."""
    config = LstmConfig(
        vocab_size=vocab_size,
        embedding_size=embedding_size,
        hidden_size=hidden_size,
        initializer_range=initializer_range,
        bos_token_id=end_of_text_id,
        eos_token_id=end_of_text_id,
        pad_token_id=end_of_text_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LstmForCausalLM(config).eval()
