"""A weight transfer engine for vLLM that loads weights from host memory, on CPU too.

vLLM transfers weights between GPUs (``nccl``, ``ipc``) but has no CPU backend. Here the process that runs vLLM already
has the arrays in memory (zero-copy from Ray's object store). Only a small message with version and checksum goes
through vLLM's API, and the engine takes the arrays from ``_inbox``. If the engine's workers are separate processes
(``AsyncLLM``, tensor parallelism), the arrays go through a file in shared memory.

Only this module, ``nccl`` and ``ipc`` use that API, which changes between releases (written for vLLM 0.32).
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import torch

from rlgaf_ray.types import WeightUpdate
from rlgaf_ray.weights.control import Control
from rlgaf_ray.weights.shared_file import read_shared, shared_file
from rlgaf_ray.weights.state import entries_checksum, to_tensors, update_checksum

if TYPE_CHECKING:
    from vllm.distributed.weight_transfer.base import WeightTransferEngine

BACKEND = "object_store"

_inbox: dict[int, WeightUpdate] = {}  # policy version -> arrays, only while one chunk is loaded


@cache
def register() -> None:
    """Register the backend with vLLM in this process. Also an entry point of the group ``vllm.general_plugins``."""
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    WeightTransferEngineFactory.register_engine(BACKEND, _engine_class())


def connect(llm: Control) -> None:
    """Initialise the backend once on an engine started with ``weight_transfer_config={"backend": BACKEND}``."""
    llm.init_weight_transfer_engine({"init_info": {}})


def push(llm: Control, update: WeightUpdate, *, same_process: bool = True) -> None:
    """Load one chunk of an update into a running engine.

    The last chunk clears the prefix cache. Together the chunks must be a full state dict (see ``Receipt``); a failure
    between two chunks leaves the engine unusable.
    """
    info = {"policy_version": update.policy_version, "checksum": update_checksum(update), "file": None}
    with ExitStack() as until_loaded:
        if same_process:
            _inbox[update.policy_version] = update
            until_loaded.callback(_inbox.clear)
        else:
            info["file"] = str(until_loaded.enter_context(shared_file(update)))
        if update.is_first:
            llm.start_weight_update()
        llm.update_weights({"update_info": info})
        if not update.is_last:
            return
        llm.finish_weight_update(weight_version=str(update.policy_version))
    clear_prefix_cache(llm)


def clear_prefix_cache(llm: Control) -> None:
    """Clear the prefix cache, which vLLM does not do by itself: cached prompts would reuse stale keys and values."""
    cleared = llm.reset_prefix_cache()
    assert cleared, "the prefix cache is in use: update weights only between calls of generate"


def _received(policy_version: int, file: str | None) -> dict[str, torch.Tensor]:
    """Return the tensors of a message, from the shared file or the inbox."""
    return to_tensors(_inbox[policy_version]) if file is None else read_shared(file)


def without_absent_ties(tensors: dict[str, torch.Tensor], model: object) -> dict[str, torch.Tensor]:
    """Drop tied copies for which vLLM's model has no module, such as the output layer of its Gemma 2."""
    seen: set[int] = set()
    kept: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.data_ptr() not in seen or hasattr(model, name.partition(".")[0]):
            kept[name] = tensor
        seen.add(tensor.data_ptr())
    return kept


def _engine_class() -> type[WeightTransferEngine]:
    """Define the transfer engine class; its base class needs vLLM, which is an optional dependency."""
    from vllm.distributed.weight_transfer.base import (
        WeightTransferEngine,
        WeightTransferInitInfo,
        WeightTransferUpdateInfo,
    )
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    @dataclass
    class InitInfo(WeightTransferInitInfo):
        """Empty: sender and receiver share a host."""

    @dataclass
    class UpdateInfo(WeightTransferUpdateInfo):
        policy_version: int
        checksum: str
        file: str | None = None

    class ObjectStoreWeightTransferEngine(WeightTransferEngine[InitInfo, UpdateInfo]):
        """Loads checkpoint-format weights from the inbox, layer by layer.

        The layerwise reload is needed on CPU too: vLLM repacks linear layers after loading, so a plain
        ``load_weights`` on the live model fails.
        """

        init_info_cls = InitInfo
        update_info_cls = UpdateInfo

        def init_transfer_engine(self, init_info: InitInfo) -> None:
            pass  # no connection to open

        def start_weight_update(self) -> None:
            initialize_layerwise_reload(self.model)

        def receive_weights(self, update_info: UpdateInfo) -> None:
            tensors = _received(update_info.policy_version, update_info.file)
            shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
            actual = entries_checksum(update_info.policy_version, shapes, dtypes)
            assert actual == update_info.checksum, "the received weights do not match the message's checksum"
            cast(Any, self.model).load_weights(without_absent_ties(tensors, self.model).items())

        def finish_weight_update(self) -> None:
            finalize_layerwise_reload(self.model, self.model_config)

        def shutdown(self) -> None:
            pass  # no connection to close

    return ObjectStoreWeightTransferEngine
