"""Weights from a learner to an engine on the same GPU by vLLM's own IPC backend: the engine opens the learner's memory.

The learner makes handles, the engines copy from them, and only then may the learner change its weights or let go of
them (``IpcSender.release``). Of sharded weights the whole copies are held for that long on every rank's GPU.

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
    """Nobody to meet: only that each entry comes with a handle of its own."""
    control.init_weight_transfer_engine({"init_info": {"packed": False}})


def receive(control: Control, update: DeviceUpdate, *, same_process: bool = True) -> None:
    """Copy from the learner's memory; the update was checked before (``check_announced``).

    To vLLM's own child processes the handles go as text: its messages carry no Python objects.
    """
    assert update.handles is not None, "an update over ipc carries handles"
    control.start_weight_update()
    handles = [dict(update.handles[name]) for name in update.shapes]
    if same_process:
        carried: dict[str, Any] = {"ipc_handles": handles}
    else:
        carried = {"ipc_handles_pickled": base64.b64encode(pickle.dumps(handles)).decode()}
    control.update_weights({"update_info": update_info(update) | carried})
    control.finish_weight_update(weight_version=str(update.policy_version))


class IpcSender:
    """Holds what was shared until ``release``."""

    def __init__(self) -> None:
        self._shared: list[torch.Tensor] = []

    def share(self, state: Mapping[str, torch.Tensor], policy_version: int) -> DeviceUpdate:
        """Handles to every entry. Contiguous entries are not copied: the update shows later changes of the tensors."""
        from torch.multiprocessing.reductions import reduce_tensor
        from vllm.distributed.weight_transfer.base import materialize_full_tensor

        assert not self._shared, "the engines have not let go of the weights shared before"
        whole = {name: materialize_full_tensor(tensor.detach()).contiguous() for name, tensor in state.items()}
        self._shared = list(whole.values())
        card = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        own = {name: {card: reduce_tensor(tensor)[1]} for name, tensor in whole.items()}
        torch.cuda.current_stream().synchronize()  # the engines read from another process, which no stream orders
        return announce(whole, policy_version, merge_handles(_from_all_ranks(own)))

    def release(self) -> None:
        """The engines are done: the memory is the learner's alone again."""
        self._shared = []
        torch.cuda.ipc_collect()


Handles = Mapping[str, Mapping[str, tuple[Any, ...]]]


def merge_handles(ranks: list[Handles]) -> dict[str, dict[str, tuple[Any, ...]]]:
    """Each entry with its handle on every rank's GPU: an engine takes the one of the GPU that it is on."""
    return {name: {card: handle for rank in ranks for card, handle in rank[name].items()} for name in ranks[0]}


def _from_all_ranks(own: Handles) -> list[Handles]:
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return [own]
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, own)
    return gathered
