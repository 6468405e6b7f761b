"""A weight update as a file in shared memory, for engines with workers in other processes on the same host."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from rlgaf_ray.types import WeightUpdate
from rlgaf_ray.weights.state import num_bytes, to_tensors

SHARED_MEMORY = Path("/dev/shm")


@contextmanager
def shared_file(update: WeightUpdate) -> Iterator[Path]:
    """Write the update to a file that all processes can map; it is deleted on exit from the context."""
    with tempfile.NamedTemporaryFile(dir=_folder(num_bytes(update)), prefix="rlgaf-", suffix=".safetensors") as file:
        path = Path(file.name)
        first: dict[int, str] = {}  # array id -> name under which it is written
        tied = {name: first.setdefault(id(array), name) for name, array in update.arrays.items()}
        tensors = to_tensors(update)
        save_file({name: tensors[name] for name in first.values()}, path, metadata={"names": json.dumps(tied)})
        yield path


def read_shared(path: str) -> dict[str, torch.Tensor]:
    """Read all entries; tied names share one tensor."""
    with safe_open(path, framework="pt") as file:
        names: dict[str, str] = json.loads(file.metadata()["names"])
        tensors = {name: file.get_tensor(name) for name in set(names.values())}
    return {name: tensors[source] for name, source in names.items()}


def _folder(size: int) -> Path:
    """Return /dev/shm if it has enough free space (containers often have 64 MB), else the temporary directory."""
    if SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > size:
        return SHARED_MEMORY
    return Path(tempfile.gettempdir())
