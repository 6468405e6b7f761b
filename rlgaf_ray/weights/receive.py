"""The engine's side of a push, whichever way the weights come: check it, load it, forget what old weights computed."""

from __future__ import annotations

from rlgaf_ray.types import WeightUpdate
from rlgaf_ray.weights import ipc, nccl, object_store
from rlgaf_ray.weights.choice import Backend
from rlgaf_ray.weights.control import Control
from rlgaf_ray.weights.manifest import DeviceUpdate, check_announced
from rlgaf_ray.weights.state import Receipt, num_bytes


def open_channel(control: Control, backend: Backend) -> None:
    """Once, after the engine has started. Over NCCL the engine has to meet the learner: ``nccl.connect``."""
    match backend:
        case "object_store":
            object_store.connect(control)
        case "ipc":
            ipc.connect(control)


def check(update: WeightUpdate | DeviceUpdate, receipt: Receipt) -> None:
    """Raise ``ValueError`` for an update that, with its other parts, is no full state dict of the engine's model."""
    match update:
        case WeightUpdate():
            receipt.take(update)
        case DeviceUpdate():
            check_announced(update, receipt.expected)


def load(control: Control, update: WeightUpdate | DeviceUpdate, *, same_process: bool) -> None:
    """Load an update that was checked. ``same_process``: this one computes with the weights, none that vLLM started."""
    match update:
        case WeightUpdate():
            object_store.push(control, update, same_process=same_process)
            return
        case DeviceUpdate(handles=None):
            nccl.receive(control, update)
        case DeviceUpdate():
            ipc.receive(control, update, same_process=same_process)
    object_store.clear_prefix_cache(control)


def megabytes(update: WeightUpdate | DeviceUpdate) -> float:
    """Tied entries count once where they travel once."""
    return (num_bytes(update) if isinstance(update, WeightUpdate) else update.num_bytes) / 1e6
