"""An update whose weights stay on GPUs: what it says that it brings, and how a receiver holds it to that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rlgaf_ray.weights.state import Shapes, check_entries, entries_checksum


@dataclass(frozen=True, slots=True, eq=False)
class DeviceUpdate:
    """One version of a network's weights for vLLM's own GPU backends. The weights themselves travel another way.

    It comes in one part: what vLLM has not copied yet at a part's end it would read after the sender has let go of it.
    """

    policy_version: int
    shapes: Shapes  # every state_dict entry, tied copies included, in the order of sending
    dtypes: Mapping[str, str]  # "float32", "bfloat16", "float16"
    checksum: str  # of the three above, by the sender
    handles: Mapping[str, Mapping[str, tuple[Any, ...]]] | None = None  # ipc: how each GPU's process opens each entry

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
    """What a sender says of the state dict that it is about to send."""
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in state.items()}
    return DeviceUpdate(policy_version, shapes, dtypes, entries_checksum(policy_version, shapes, dtypes), handles)


def check_announced(update: DeviceUpdate, expected: Shapes) -> None:
    """Refuse an update before its first byte arrives: a damaged message, or another model's weights.

    Raises:
        ValueError: names what is wrong, as ``check_shapes`` does.
    """
    if entries_checksum(update.policy_version, update.shapes, update.dtypes) != update.checksum:
        raise ValueError(
            f"the message of version {update.policy_version} arrived changed: its names, shapes and types are not "
            "those of the sender's checksum"
        )
    if update.handles is not None and update.handles.keys() != update.shapes.keys():
        missing = sorted(update.shapes.keys() ^ update.handles.keys())
        raise ValueError(f"weights of version {update.policy_version} and their handles differ in {missing[0]!r}")
    check_entries(update.policy_version, update.shapes, expected, known=expected)
