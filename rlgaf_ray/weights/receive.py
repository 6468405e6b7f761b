"""The engine side of a weight push for every backend: check the update, load it, clear the prefix cache."""

from __future__ import annotations

from rlgaf_ray.types import WeightUpdate
from rlgaf_ray.weights import ipc, nccl, object_store
from rlgaf_ray.weights.choice import Backend
from rlgaf_ray.weights.control import Control
from rlgaf_ray.weights.manifest import DeviceUpdate, check_announced
from rlgaf_ray.weights.state import Receipt, num_bytes


def open_channel(control: Control, backend: Backend) -> None:
    """Initialise the backend once after engine start. NCCL also needs the learner: call ``nccl.connect`` for it."""
    match backend:
        case "object_store":
            object_store.connect(control)
        case "ipc":
            ipc.connect(control)


def check(update: WeightUpdate | DeviceUpdate, receipt: Receipt) -> None:
    """Raise ``ValueError`` unless the update, with its previous chunks, matches the engine model's state dict."""
    match update:
        case WeightUpdate():
            receipt.take(update)
        case DeviceUpdate():
            check_announced(update, receipt)


def load(control: Control, update: WeightUpdate | DeviceUpdate, *, same_process: bool) -> None:
    """Load a checked update. ``same_process``: vLLM runs in this process, without workers of its own."""
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
    """Return the size of an update in MB; tied entries count once."""
    return (num_bytes(update) if isinstance(update, WeightUpdate) else update.num_bytes) / 1e6
