"""Weight transfer to engines on the learner's own GPU through vLLM's CUDA IPC backend.

The learner shares memory handles and the engines copy from them. Only after that may the learner change or free its
weights (``IpcSender.release``). For sharded weights every rank holds the gathered full tensors on its GPU until then.

Written for vLLM 0.32 and torch 2.13 (``reduce_tensor``).
"""

from __future__ import annotations

import base64
import pickle
from collections.abc import Mapping
from typing import Any

import torch

from rlgaf_ray.weights.control import Control
from rlgaf_ray.weights.manifest import DeviceUpdate, announce
from rlgaf_ray.weights.nccl import update_info


def connect(control: Control) -> None:
    """Initialise the backend: no rendezvous, one handle per entry."""
    control.init_weight_transfer_engine({"init_info": {"packed": False}})


def receive(control: Control, update: DeviceUpdate, *, same_process: bool = True) -> None:
    """Load weights from the learner's memory; call ``check_announced`` first.

    vLLM's child processes get the handles pickled as text, because its messages cannot carry Python objects.
    """
    assert update.handles is not None, "an update over ipc needs handles"
    control.start_weight_update()
    handles = [dict(update.handles[name]) for name in update.shapes]
    if same_process:
        payload: dict[str, Any] = {"ipc_handles": handles}
    else:
        payload = {"ipc_handles_pickled": base64.b64encode(pickle.dumps(handles)).decode()}
    control.update_weights({"update_info": update_info(update) | payload})
    control.finish_weight_update(weight_version=str(update.policy_version))


class IpcSender:
    """Shares the learner's weights and keeps them alive until ``release``."""

    def __init__(self) -> None:
        self._shared: list[torch.Tensor] = []

    def share(self, state: Mapping[str, torch.Tensor], policy_version: int) -> DeviceUpdate:
        """Return an update with handles to every entry. Contiguous tensors are not copied, so do not modify them."""
        from torch.multiprocessing.reductions import reduce_tensor
        from vllm.distributed.weight_transfer.base import materialize_full_tensor

        assert not self._shared, "release the previously shared weights first"
        full = {name: materialize_full_tensor(tensor.detach()).contiguous() for name, tensor in state.items()}
        self._shared = list(full.values())
        gpu = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        own = {name: {gpu: reduce_tensor(tensor)[1]} for name, tensor in full.items()}
        torch.cuda.current_stream().synchronize()  # streams do not order reads from the engines' processes
        return announce(full, policy_version, merge_handles(_from_all_ranks(own)))

    def release(self) -> None:
        """Stop sharing, once all engines have copied the weights."""
        self._shared = []
        torch.cuda.ipc_collect()


Handles = Mapping[str, Mapping[str, tuple[Any, ...]]]


def merge_handles(ranks: list[Handles]) -> dict[str, dict[str, tuple[Any, ...]]]:
    """Merge the ranks' handles per entry, keyed by GPU; an engine uses the handle of its own GPU."""
    return {name: {gpu: handle for rank in ranks for gpu, handle in rank[name].items()} for name in ranks[0]}


def _from_all_ranks(own: Handles) -> list[Handles]:
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return [own]
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, own)
    return gathered
