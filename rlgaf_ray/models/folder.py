"""Read, save and check model folders. The checks run before Ray starts and load no weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from huggingface_hub import HfApi, snapshot_download
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME, cached_file

from rlgaf_ray.config.model import FILM_REVIEWS, FROM_SCRATCH
from rlgaf_ray.errors import UserError
from rlgaf_ray.models.built_in import model_source
from rlgaf_ray.models.families import check_family
from rlgaf_ray.models.legal import legal_of, save_legal

POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "context_length")
"""Config keys of the maximum sequence length."""


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn any exception from reading model files into a ``UserError`` of one sentence."""
    try:
        yield
    except UnpicklingError as error:
        raise UserError(
            f"{what} cannot be read: its pytorch_model.bin contains more than weights, and loading it could run code: "
            "convert it to safetensors if you trust its author"
        ) from error
    except Exception as error:  # transformers raises many types for bad files
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0][:300] if lines else type(error).__name__
        raise UserError(f"{what} cannot be read: {reason}") from error


def read_config(source: str | Path, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Read a model's config. Raises ``UserError`` if it is missing, damaged, or needs ``trust_remote_code``.

    ``output_router_logits`` is off: it adds the experts' balancing loss to that of ``forward``, which is not used here,
    and fails with a cache.
    """
    with reading(f"model.generator={source}"):
        config = AutoConfig.from_pretrained(model_source(source), trust_remote_code=trust_remote_code)
        if getattr(config.get_text_config(), "output_router_logits", False):
            config.get_text_config().output_router_logits = False
    return config


def read_causal_lm(source: str | Path, *, allow_pickle: bool = False, **options: Any) -> PreTrainedModel:
    """Load a causal LM with transformers; every weight must be in the files.

    Args:
        options: arguments of ``from_pretrained``.

    Raises:
        UserError: the model cannot be read, or a weight is missing or does not have the shape of config.json.
    """
    auto_class: Any = AutoModelForCausalLM  # Any: its type does not declare output_loading_info
    with reading(f"model.generator={source}"):
        model, found = auto_class.from_pretrained(
            model_source(source),
            use_safetensors=None if allow_pickle else True,  # None: prefer safetensors
            ignore_mismatched_sizes=True,  # reported below, by name
            output_loading_info=True,
            **options,
        )
    for name, saved, expected in found["mismatched_keys"]:
        raise UserError(
            f"model.generator={source} has {name} of shape {list(saved)}, but its config.json expects "
            f"{list(expected)}: make the two agree"
        )
    if missing := sorted(found["missing_keys"]):
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(
            f"model.generator={source} lacks {missing[0]}{more}, which {type(model).__name__} needs: "
            "save the bare model with save_pretrained"
        )
    return cast(PreTrainedModel, model)


def longest_sequence(config: PreTrainedConfig) -> int | None:
    """Return the maximum sequence length in tokens; None if the config has none, as with ALiBi."""
    text = config.get_text_config()
    found = (longrope_length(config), *(getattr(text, name, None) for name in POSITIONS))
    return next((value for value in found if isinstance(value, int) and value > 0), None)


def longrope_length(config: PreTrainedConfig) -> int | None:
    """Return the length up to which LongRoPE (Phi-3) has one set of factors; None without LongRoPE.

    If any row of a batch is longer, transformers computes every row with other factors, and vLLM all of its requests.
    """
    rope = getattr(config.get_text_config(), "rope_parameters", None)
    of_layers = [rope, *rope.values()] if isinstance(rope, dict) else []
    found = [each for each in of_layers if isinstance(each, dict) and each.get("rope_type") == "longrope"]
    return min((each["original_max_position_embeddings"] for each in found), default=None)


def save_network(network: PreTrainedModel, folder: str | Path, state: dict[str, Tensor] | None = None) -> None:
    """Save a network like ``save_pretrained``, with its table of legal tokens, if any.

    generation_config.json is written separately, without validation: transformers rejects some configs on saving that
    it accepts on loading.
    """
    settings = network.generation_config if network.can_generate() else None
    if settings is not None:
        network.generation_config = GenerationConfig()
    try:
        network.save_pretrained(folder, state_dict=state)
    finally:
        if settings is not None:
            network.generation_config = settings
    if settings is not None:
        settings.to_json_file(Path(folder) / GENERATION_CONFIG_NAME, use_diff=True, keys_to_pop=["compile_config"])
    if (legal := legal_of(network)) is not None:
        save_legal(folder, legal)


def check_model_source(source: str, *, allow_pickle: bool = False) -> None:
    """Raise ``UserError`` for a path that is not a model folder, holds adapters only, or has no safetensors."""
    if source == FILM_REVIEWS:
        model_source(source)
        return
    if not is_folder(source):
        return
    folder = Path(os.path.expanduser(source))
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"model.generator={source} contains adapters (adapter_config.json): merge them into their base model with "
            "peft's merge_and_unload(), save that, and give its folder"
        )
    if not (folder / "config.json").is_file():
        what = "has no config.json" if folder.is_dir() else "is not a folder" if folder.exists() else "does not exist"
        names = ", ".join((FILM_REVIEWS, *FROM_SCRATCH))
        raise UserError(f"model.generator={source} {what}: give {names}, a Hugging Face model folder or a hub id")
    if not allow_pickle and not any(folder.glob("*.safetensors")):
        raise UserError(
            f"model.generator={source} has no safetensors, and a pickle such as pytorch_model.bin can run code when it "
            "is read: convert it, or set model.allow_pickle=true if you trust its author"
        )


def is_folder(source: str) -> bool:
    """Return whether a source is a path, and not the name of a built-in model or a hub id."""
    if source == FILM_REVIEWS or source in FROM_SCRATCH:
        return False
    return source.startswith((".", "/", "~")) or Path(source).exists()


def check_model(source: str, *, trust_remote_code: bool = False, allow_pickle: bool = False) -> None:
    """Raise ``UserError`` if a model cannot be trained. Reads the headers of a folder's weights, but no weights."""
    check_model_source(source, allow_pickle=allow_pickle)
    if source == FILM_REVIEWS or source in FROM_SCRATCH:
        return
    config = read_config(source, trust_remote_code=trust_remote_code)
    check_family(source, config)
    there = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    with reading(f"model.generator={source}"):
        if cached_file(model_source(source), GENERATION_CONFIG_NAME, **there):
            GenerationConfig.from_pretrained(model_source(source))
    if is_folder(source):
        read_causal_lm(source, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code, device_map="meta")
        return
    with reading(f"model.generator={source}"), torch.device("meta"):
        AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    check_hub_files(source, allow_pickle=allow_pickle)


def check_hub_files(source: str, *, allow_pickle: bool) -> None:
    """Raise ``UserError`` if a hub model has no weights in an allowed format, by its file names."""
    wanted = ("*.safetensors", "*.bin") if allow_pickle else ("*.safetensors",)
    try:
        names = HfApi().list_repo_files(source)
    except Exception as error:  # many types: offline mode, or the hub is not reachable
        cached = Path(snapshot_download(source, local_files_only=True))  # exists: config.json was read from it
        if not any(path for pattern in wanted for path in cached.glob(pattern)):
            raise UserError(
                f"model.generator={source} has no weights in the local hub cache, and the hub is not reachable: "
                "download it first, or give a folder"
            ) from error
        return
    if not any(fnmatch(name, pattern) for name in names for pattern in wanted):
        raise UserError(
            f"model.generator={source} has no {' and no '.join(wanted)} on the hub: use a model with safetensors, or "
            "set model.allow_pickle=true if you trust the author of its pytorch_model.bin"
        )
