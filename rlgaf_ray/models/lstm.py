"""SeqGAN's generator (Yu et al. 2017, arXiv 1609.05473): an LSTM language model with the transformers interface."""

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
    """Config of ``LstmForCausalLM``; the defaults are those of SeqGAN's synthetic experiment."""

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
        # An LSTM has no position embeddings; engines use this limit to reject requests.
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        # Declared as a linear-attention layer, so that DynamicCache stores a recurrent state and no keys and values.
        self.num_hidden_layers = 1
        self.layer_types = ["linear_attention"]
        token_ids = {"bos_token_id": bos_token_id, "eos_token_id": eos_token_id, "pad_token_id": pad_token_id}
        super().__init__(**{"tie_word_embeddings": False, **kwargs, **token_ids})


class LstmForCausalLM(PreTrainedModel, GenerationMixin):
    """Embedding, one LSTM layer, and a linear layer over the vocabulary.

    It has the interface of a transformers causal LM. Its cache is a ``DynamicCache(config=model.config)`` whose only
    layer has the concatenated hidden and cell state, [B, 2H]. Padding on the left or right is skipped: the state after
    a padded prompt equals the state after the prompt.
    """

    config_class = LstmConfig
    base_model_prefix = "model"
    _input_embed_layer = "embedding"
    _is_stateful = True  # the state cannot be rewound to an earlier token

    def __init__(self, config: LstmConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size)
        self.lstm = nn.LSTM(config.embedding_size, config.hidden_size, batch_first=True)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise from N(0, initializer_range^2), as SeqGAN does; the LSTM's redundant second bias is zero."""
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
        """Return next-token logits, [B, T, V], or only those at ``logits_to_keep``.

        ``attention_mask`` covers the cached and the new tokens; its zeros come before or after a row's tokens, never
        between them. ``position_ids`` are ignored. Raises ``ValueError`` for a row without tokens.
        """
        if not use_cache:
            past_key_values = None
        elif past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        embedded = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        # Autocast applies only to the output layer. The recurrence costs little in comparison, and CPUs need special
        # instructions to run it in bfloat16.
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
        """Return the LSTM's output at every new token and update the cache, if any."""
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
        """Run the LSTM over each row's tokens without padding.

        Returns outputs [B, T, H], arbitrary at padding, and the state after the last token.
        """
        lengths = mask.sum(1)
        if not bool(lengths.all()):
            raise ValueError("a row of the attention mask has no token: give every prompt at least one")
        size, num_tokens = mask.shape
        first = mask.int().argmax(1, keepdim=True)
        steps = torch.arange(num_tokens, device=mask.device).expand(size, -1)
        rows = torch.arange(size, device=mask.device)[:, None]
        left_aligned = embedded[rows, (steps + first).clamp(max=num_tokens - 1)]
        packed = nn.utils.rnn.pack_padded_sequence(left_aligned, lengths.cpu(), batch_first=True, enforce_sorted=False)
        hidden, last = self.lstm(packed, state)
        hidden, _ = nn.utils.rnn.pad_packed_sequence(hidden, batch_first=True, total_length=num_tokens)
        return hidden[rows, (steps - first).clamp(min=0)], last


def _state(cache: DynamicCache) -> tuple[Tensor, Tensor] | None:
    """Return hidden and cell state, [1, B, H] each, or None if the cache is empty."""
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
    """Build SeqGAN's LSTM, initialised from N(0, initializer_range^2); a range of 1 gives SeqGAN's oracle."""
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
