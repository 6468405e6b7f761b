"""Check that a model has an embedding for every token id of a task and its tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from rlgaf_ray.data.task import Task
from rlgaf_ray.errors import UserError
from rlgaf_ray.types import EVALUATION_PARTS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_special_tokens(tokenizer: PreTrainedTokenizerBase, num_embeddings: int, model: str) -> None:
    """Raise ``UserError`` if the padding or end-of-text token has no embedding in ``model``."""
    for name in ("pad_token", "eos_token"):
        token_id = getattr(tokenizer, f"{name}_id")
        if token_id >= num_embeddings:
            _refuse(token_id, name, tokenizer, num_embeddings, model)


def check_token_ids(
    task: Task, tokenizer: PreTrainedTokenizerBase, num_embeddings: int, model: str, *, block_tokens: int | None
) -> None:
    """Raise ``UserError`` if a token of the task has no embedding in ``model``.

    ``block_tokens``: the row length of the base warm-up; None without a base warm-up.
    """
    for part, token_ids in _arrays(task, block_tokens):
        if token_ids.size and (largest := int(token_ids.max())) >= num_embeddings:
            _refuse(largest, part, tokenizer, num_embeddings, model)


def _arrays(task: Task, block_tokens: int | None) -> Iterator[tuple[str, np.ndarray]]:
    parts = {"demonstrations": task.demonstrations, "contrast": task.contrast}
    parts |= {f"part {part}": task.evaluation(part) for part in EVALUATION_PARTS}
    for name, items in parts.items():
        ids = [ids for item in items for ids in (item.prompt_ids, item.response_ids)]
        yield name, np.concatenate(ids) if ids else np.empty(0, np.int32)
    yield "prompts without answers", np.concatenate(task.prompts) if len(task.prompts) else np.empty(0, np.int32)
    if block_tokens is not None:
        yield "text of the base warm-up", task.warmup_blocks(block_tokens).token_ids


def _refuse(token_id: int, where: str, tokenizer: PreTrainedTokenizerBase, num_embeddings: int, model: str) -> None:
    token = tokenizer.convert_ids_to_tokens(token_id)
    raise UserError(
        f"model.generator={model} has {num_embeddings} embeddings and its tokenizer {len(tokenizer)} tokens: {token!r} "
        f"({where}) has the id {token_id}; call model.resize_token_embeddings({len(tokenizer)}) and save the model, or "
        "remove this token"
    )
