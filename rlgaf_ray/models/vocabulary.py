"""Token ids that a model has logits for and its tokenizer has no token for: embeddings are often padded."""

from __future__ import annotations

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from rlgaf_ray.models.generator import end_of_text_ids

UNUSED = "rlgaf_unused_token_ids"
"""The key of config.json under which the base warm-up keeps them: engines and learner load no tokenizer."""


def unused_token_ids(tokenizer: PreTrainedTokenizerBase, num_embeddings: int) -> list[int]:
    """Ids below ``num_embeddings`` without a token: no text holds them, and no reader sees them."""
    known = {*tokenizer.get_vocab().values(), *tokenizer.all_special_ids}
    candidates = [token_id for token_id in range(num_embeddings) if token_id not in known]
    return [token_id for token_id in candidates if tokenizer.convert_ids_to_tokens(token_id) is None]


def masked_token_ids(config: PreTrainedConfig, *, stop_at_end_of_text: bool) -> list[int]:
    """The tokens that cannot be sampled: ids without a token, and what ends a text where no response ends early."""
    unused = list(getattr(config, UNUSED, None) or [])
    return unused if stop_at_end_of_text else [*end_of_text_ids(config), *unused]
