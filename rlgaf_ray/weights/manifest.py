"""Manifest of a GPU-to-GPU weight update, and the receiver's check of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rlgaf_ray.weights.state import Receipt, Shapes, check_entries, entries_checksum


@dataclass(frozen=True, slots=True, eq=False)
class DeviceUpdate:
    """Metadata of one version of a network's weights; vLLM's GPU backends transfer the weights themselves.

    It is always sent in one chunk: with several, vLLM would read tensors it has not copied yet after the sender has
    freed them.
    """

    policy_version: int
    shapes: Shapes  # every state_dict entry without tied copies, in sending order
    dtypes: Mapping[str, str]  # "float32", "bfloat16", "float16"
    checksum: str  # over the three fields above, computed by the sender
    handles: Mapping[str, Mapping[str, tuple[Any, ...]]] | None = None  # ipc: handle of each entry by GPU UUID

    @property
    def is_first(self) -> bool:
        return True

    @property
    def is_last(self) -> bool:
        return True

    @property
    def num_bytes(self) -> int:
        sizes = (
            getattr(torch, self.dtypes[name]).itemsize * torch.Size(shape).numel()
            for name, shape in self.shapes.items()
        )
        return sum(sizes)


def announce(
    state: Mapping[str, torch.Tensor],
    policy_version: int,
    handles: Mapping[str, Mapping[str, tuple[Any, ...]]] | None = None,
) -> DeviceUpdate:
    """Build the manifest of a state dict before it is sent."""
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in state.items()}
    return DeviceUpdate(policy_version, shapes, dtypes, entries_checksum(policy_version, shapes, dtypes), handles)


def check_announced(update: DeviceUpdate, receipt: Receipt) -> None:
    """Reject a corrupted manifest or the weights of another model before any data is transferred.

    Tied copies need not be sent: on a GPU vLLM's own copy shares the memory of the entry that it is tied to.

    Raises:
        ValueError: names the mismatch, as in ``check_shapes``.
    """
    if entries_checksum(update.policy_version, update.shapes, update.dtypes) != update.checksum:
        raise ValueError(
            f"the manifest of version {update.policy_version} is corrupted: its names, shapes and types do not match "
            "the sender's checksum"
        )
    if update.handles is not None and update.handles.keys() != update.shapes.keys():
        missing = sorted(update.shapes.keys() ^ update.handles.keys())
        raise ValueError(f"weights of version {update.policy_version} and their handles differ in {missing[0]!r}")
    known = receipt.expected
    expected = {name: shape for name, shape in known.items() if name in update.shapes or name not in receipt.copies}
    check_entries(update.policy_version, update.shapes, expected, known=known)
