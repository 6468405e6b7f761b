"""Constrain a generator to legal tokens: a table of allowed next tokens, applied in training and in sampling.

The table is stored beside the weights. Learner, reference and engines that load the folder all set the logits of
illegal tokens to minus infinity, so that their distributions agree.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

FILE = "legal_tokens.safetensors"


def constrain(model: PreTrainedModel, legal: Tensor) -> None:
    """Make ``model`` give zero probability to token b after token a unless ``legal[a, b]``: bool [V, V].

    Raises ``ValueError`` if the table has another size, or a token with no legal next token.
    """
    size = model.get_output_embeddings().weight.shape[0]
    if legal.shape != (size, size):
        raise ValueError(f"the legal tokens are a table of {tuple(legal.shape)}, and the model has {size} tokens")
    if not legal.any(1).all():
        raise ValueError(f"token {int((~legal.any(1)).nonzero()[0])} has no legal next token")
    model.register_buffer("legal_tokens", legal.to(model.device), persistent=False)
    model.register_forward_hook(_mask, with_kwargs=True)


def legal_of(model: PreTrainedModel) -> Tensor | None:
    """Return the table of a constrained model, or None."""
    found = getattr(model, "legal_tokens", None)
    return found if isinstance(found, Tensor) else None


def _mask(model: Any, arguments: tuple[Any, ...], options: dict[str, Any], output: Any) -> Any:
    token_ids = options.get("input_ids", arguments[0] if arguments else None)
    assert token_ids is not None, "a table of legal tokens needs input_ids, not inputs_embeds"
    kept = options.get("logits_to_keep", 0)
    read = token_ids[:, -kept:] if isinstance(kept, int) else token_ids[:, kept]
    output.logits = output.logits.masked_fill(~model.legal_tokens[read], float("-inf"))
    return output


def save_legal(folder: str | Path, legal: Tensor) -> None:
    save_file({"legal": legal.contiguous().cpu()}, Path(folder) / FILE)


def load_legal(folder: str | Path) -> Tensor | None:
    """Return the table of a model folder, or None."""
    path = Path(folder) / FILE
    return load_file(path)["legal"] if path.is_file() else None
