"""End-of-text token ids, collected from all files of a model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlgaf_ray.config.model import FROM_SCRATCH
from rlgaf_ray.errors import UserError
from rlgaf_ray.models.built_in import model_source
from rlgaf_ray.models.generator import read_config


def model_ends(source: str | Path, tokenizer: PreTrainedTokenizerBase, *, trust_remote_code: bool = False) -> list[int]:
    """Return the end-of-text ids of the tokenizer, config.json and generation_config.json, in this order.

    They may differ: base models often have a tokenizer that ends a turn and a config that ends a document, and chat
    models may list further ids only in generation_config.json. Ids outside the vocabulary are dropped. Raises
    ``UserError`` if an id is not an integer.
    """
    if source in FROM_SCRATCH:
        return merged(tokenizer.eos_token_id)
    config = read_config(source, trust_remote_code=trust_remote_code).get_text_config()
    named = {"the tokenizer": tokenizer.eos_token_id, "config.json": config.eos_token_id}
    with suppress(OSError, ValueError):  # missing or invalid file
        named["generation_config.json"] = GenerationConfig.from_pretrained(model_source(source)).eos_token_id
    for place, value in named.items():
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(token_id) is int for token_id in ids):
            raise UserError(
                f"model.generator={source}: eos_token_id of {place} is {value!r}: give a token id, or a list of them"
            )
    return [token_id for token_id in merged(*named.values()) if 0 <= token_id < config.vocab_size]


def merged(*named: int | Collection[int] | None) -> list[int]:
    """Return the distinct ids in order of first occurrence."""
    ids = [[each] if isinstance(each, int) else list(each or ()) for each in named]
    return list(dict.fromkeys(int(token_id) for each in ids for token_id in each))


def set_ends(model: PreTrainedModel, token_ids: Sequence[int]) -> None:
    """Set the model's end-of-text ids, so that an export stops where the demonstrations end."""
    value = token_ids[0] if len(token_ids) == 1 else list(token_ids)
    model.config.get_text_config().eos_token_id = value
    if model.generation_config is not None:
        model.generation_config.eos_token_id = value
