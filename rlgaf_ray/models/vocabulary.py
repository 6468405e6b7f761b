"""Unused token ids: padded embeddings have logits for ids that the tokenizer does not know."""

from __future__ import annotations

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from rlgaf_ray.models.generator import end_of_text_ids

UNUSED = "rlgaf_unused_token_ids"
"""Key of config.json where the base warm-up stores them, since engines and learner load no tokenizer."""


def unused_token_ids(tokenizer: PreTrainedTokenizerBase, num_embeddings: int) -> list[int]:
    """Return the ids below ``num_embeddings`` that the tokenizer has no token for."""
    known = {*tokenizer.get_vocab().values(), *tokenizer.all_special_ids}
    candidates = [token_id for token_id in range(num_embeddings) if token_id not in known]
    return [token_id for token_id in candidates if tokenizer.convert_ids_to_tokens(token_id) is None]


def masked_token_ids(config: PreTrainedConfig, *, stop_at_end_of_text: bool) -> list[int]:
    """Return the ids that must not be sampled: unused ids, and end-of-text ids if responses cannot end early."""
    unused = list(getattr(config, UNUSED, None) or [])
    return unused if stop_at_end_of_text else [*end_of_text_ids(config), *unused]
