"""The token ids that end a text: every one that the files of a model name."""

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
    """Those of the tokenizer, of config.json and of generation_config.json, in this order; each may name others.

    Base models often have a tokenizer that ends a turn and a config that ends a document, and chat models name their
    further ends in generation_config.json alone. Ids outside of the vocabulary are left out: no rollout has them.
    Raises ``UserError`` for one that is no number.
    """
    if source in FROM_SCRATCH:
        return merged(tokenizer.eos_token_id)
    config = read_config(source, trust_remote_code=trust_remote_code).get_text_config()
    named = {"the tokenizer": tokenizer.eos_token_id, "config.json": config.eos_token_id}
    with suppress(OSError, ValueError):  # no such file, or one that is of no use
        named["generation_config.json"] = GenerationConfig.from_pretrained(model_source(source)).eos_token_id
    for place, value in named.items():
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(token_id) is int for token_id in ids):
            raise UserError(
                f"model.generator={source}: eos_token_id of {place} is {value!r}: give a token id, or a list of them"
            )
    return [token_id for token_id in merged(*named.values()) if 0 <= token_id < config.vocab_size]


def merged(*named: int | Collection[int] | None) -> list[int]:
    """Each id once, in the order in which it comes."""
    ids = [[each] if isinstance(each, int) else list(each or ()) for each in named]
    return list(dict.fromkeys(int(token_id) for each in ids for token_id in each))


def set_ends(model: PreTrainedModel, token_ids: Sequence[int]) -> None:
    """Let the model's own files name these, so that whatever loads it ends texts as its demonstrations do."""
    value = token_ids[0] if len(token_ids) == 1 else list(token_ids)
    model.config.get_text_config().eos_token_id = value
    if model.generation_config is not None:
        model.generation_config.eos_token_id = value
