"""Model folders: reading them, and what is wrong with one, before Ray starts and before any weight is loaded."""

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
"""Names under which configs hold the longest sequence that the model was built for."""


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn whatever transformers raises for files that are missing, damaged or unknown to it into one sentence."""
    try:
        yield
    except UnpicklingError as error:
        raise UserError(
            f"{what} cannot be read: its pytorch_model.bin holds more than weights, which is code that would run: "
            "convert it to safetensors where you trust it"
        ) from error
    except Exception as error:  # of many types: what is wrong is the files that it reads
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0][:300] if lines else type(error).__name__
        raise UserError(f"{what} cannot be read: {reason}") from error


def read_config(source: str | Path, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """A model's config.json. Raises ``UserError`` where there is none, it is damaged, or it wants code to be run."""
    with reading(f"model.generator={source}"):
        return AutoConfig.from_pretrained(model_source(source), trust_remote_code=trust_remote_code)


def read_causal_lm(source: str | Path, *, allow_pickle: bool = False, **options: Any) -> PreTrainedModel:
    """A causal LM by transformers, which must find each of its weights in the files.

    Args:
        options: of ``from_pretrained``.

    Raises:
        UserError: it cannot be read, or a weight is missing or of another shape than config.json says.
    """
    kind: Any = AutoModelForCausalLM  # its types know one of its two answers
    with reading(f"model.generator={source}"):
        model, found = kind.from_pretrained(
            model_source(source),
            use_safetensors=None if allow_pickle else True,  # None: where they are there
            ignore_mismatched_sizes=True,  # reported below, by name
            output_loading_info=True,
            **options,
        )
    for name, saved, expected in found["mismatched_keys"]:
        raise UserError(
            f"model.generator={source} holds {name} of shape {list(saved)}, but its config.json asks for "
            f"{list(expected)}: make the two agree"
        )
    if missing := sorted(found["missing_keys"]):
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(
            f"model.generator={source} does not hold {missing[0]}{more}, which {type(model).__name__} has: "
            "save the bare model with save_pretrained"
        )
    return cast(PreTrainedModel, model)


def longest_sequence(config: PreTrainedConfig) -> int | None:
    """The tokens that a model was built for; None where its config names no bound, as with ALiBi."""
    text = config.get_text_config()
    found = (getattr(text, name, None) for name in POSITIONS)
    return next((value for value in found if isinstance(value, int) and value > 0), None)


def save_network(network: PreTrainedModel, folder: str | Path, state: dict[str, Tensor] | None = None) -> None:
    """As ``save_pretrained``, with the network's grammar, if it has one.

    transformers reads some generation_config.json that it then refuses to write: we never use its settings, so it is
    written as it was read.
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
    """Refuse a path that is not a model folder or holds a pickle alone, before anything expensive starts."""
    if source == FILM_REVIEWS:
        model_source(source)
        return
    if not is_folder(source):
        return
    folder = Path(os.path.expanduser(source))
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"model.generator={source} holds adapters (adapter_config.json): merge them into their base model with "
            "peft's merge_and_unload(), save that, and give its folder"
        )
    if not (folder / "config.json").is_file():
        what = "has no config.json" if folder.is_dir() else "is no folder" if folder.exists() else "does not exist"
        names = ", ".join((FILM_REVIEWS, *FROM_SCRATCH))
        raise UserError(f"model.generator={source} {what}: give {names}, a Hugging Face model folder or a hub id")
    if not allow_pickle and not any(folder.glob("*.safetensors")):
        raise UserError(
            f"model.generator={source} holds no safetensors, and a pickle such as pytorch_model.bin can run code "
            "when it is read: convert it, or set model.allow_pickle=true where you trust its author"
        )


def is_folder(source: str) -> bool:
    """Whether a source means a path, rather than a built-in model or a hub id."""
    if source == FILM_REVIEWS or source in FROM_SCRATCH:
        return False
    return source.startswith((".", "/", "~")) or Path(source).exists()


def check_model(source: str, *, trust_remote_code: bool = False, allow_pickle: bool = False) -> None:
    """Refuse a model that cannot be trained here: no weight is read, of a folder their headers.

    Raises:
        UserError: names what is wrong, and what to do.
    """
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
    """Refuse a hub model without weights that may be read, by the names of its files."""
    wanted = ("*.safetensors", "*.bin") if allow_pickle else ("*.safetensors",)
    try:
        names = HfApi().list_repo_files(source)
    except Exception as error:  # of many types: the hub does not answer, or may not be asked
        cached = Path(snapshot_download(source, local_files_only=True))  # config.json came from there
        if not any(path for pattern in wanted for path in cached.glob(pattern)):
            raise UserError(
                f"model.generator={source} is without its weights in the cache of the hub, which does not answer: "
                "download it where the hub does, or give a folder"
            ) from error
        return
    if not any(fnmatch(name, pattern) for name in names for pattern in wanted):
        raise UserError(
            f"model.generator={source} has no {' and no '.join(wanted)} on the hub: take a model with safetensors, or "
            "set model.allow_pickle=true if you trust the author of its pytorch_model.bin"
        )
