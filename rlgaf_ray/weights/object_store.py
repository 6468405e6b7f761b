"""New weights into a running vLLM through its own weight-transfer API: our engine for it, for CPU and shared memory.

vLLM moves weights between GPUs (``nccl``, ``ipc``) but ships nothing for a CPU. Here the arrays already lie in memory
of the process that runs vLLM (an actor got them, uncopied, from the object store), so only a small message goes
through the API, naming the version and its checksum; the arrays wait in ``_inbox`` until the engine asks for them.
Where the engine's workers are processes of their own (``AsyncLLM``, tensor parallelism) they wait in a shared file.

This module, ``nccl`` and ``ipc`` alone touch that API, which changes from release to release (written for vLLM 0.32).
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
from rlgaf_ray.weights.state import checksum, entries_checksum, to_tensors

if TYPE_CHECKING:
    from vllm.distributed.weight_transfer.base import WeightTransferEngine

BACKEND = "object_store"

_inbox: dict[int, WeightUpdate] = {}  # policy version -> arrays, for the moment of one push or part


@cache
def register() -> None:
    """Make the backend known to vLLM in this process. Also an entry point of the group ``vllm.general_plugins``."""
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    WeightTransferEngineFactory.register_engine(BACKEND, _engine_class())


def connect(llm: Control) -> None:
    """Open the channel, once, after the engine has started with ``weight_transfer_config={"backend": BACKEND}``."""
    llm.init_weight_transfer_engine({"init_info": {}})


def push(llm: Control, update: WeightUpdate, *, same_process: bool = True) -> None:
    """Load an update, or one part of it after the other, into a running engine.

    With the last part the keys and values that were computed with the old weights are dropped. All parts together must
    be complete (see ``Receipt``): a failure in the middle leaves the engine unusable.
    """
    info = {"policy_version": update.policy_version, "checksum": checksum(update), "file": None}
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
    """Nothing else clears it: prompts seen before would be continued from stale keys and values."""
    cleared = llm.reset_prefix_cache()
    assert cleared, "the prefix cache is in use: weights may change only between calls of generate"


def _waiting(policy_version: int, file: str | None) -> dict[str, torch.Tensor]:
    """The tensors that the message speaks of."""
    return to_tensors(_inbox[policy_version]) if file is None else read_shared(file)


def without_absent_ties(tensors: dict[str, torch.Tensor], model: object) -> dict[str, torch.Tensor]:
    """Leave out a tied copy of an entry that vLLM's model has no module for: its Gemma 2 has no output layer."""
    memory: set[int] = set()
    kept: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.data_ptr() not in memory or hasattr(model, name.partition(".")[0]):
            kept[name] = tensor
        memory.add(tensor.data_ptr())
    return kept


def _engine_class() -> type[WeightTransferEngine]:
    """The engine's class, made here because its base class exists only where vLLM is installed."""
    from vllm.distributed.weight_transfer.base import (
        WeightTransferEngine,
        WeightTransferInitInfo,
        WeightTransferUpdateInfo,
    )
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    @dataclass
    class InitInfo(WeightTransferInitInfo):
        """Nothing to agree on: sender and receiver share a host."""

    @dataclass
    class UpdateInfo(WeightTransferUpdateInfo):
        policy_version: int
        checksum: str
        file: str | None = None

    class ObjectStoreWeightTransferEngine(WeightTransferEngine[InitInfo, UpdateInfo]):
        """Copies checkpoint-format weights out of the inbox, layer by layer.

        The layerwise reload is needed on CPU too: linear layers are repacked after loading, so that a plain
        ``load_weights`` on the live model fails.
        """

        init_info_cls = InitInfo
        update_info_cls = UpdateInfo

        def init_transfer_engine(self, init_info: InitInfo) -> None:
            pass  # no connection to open

        def start_weight_update(self) -> None:
            initialize_layerwise_reload(self.model)

        def receive_weights(self, update_info: UpdateInfo) -> None:
            tensors = _waiting(update_info.policy_version, update_info.file)
            shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
            arrived = entries_checksum(update_info.policy_version, shapes, dtypes)
            assert arrived == update_info.checksum, "there wait other weights than the message names"
            cast(Any, self.model).load_weights(without_absent_ties(tensors, self.model).items())

        def finish_weight_update(self) -> None:
            finalize_layerwise_reload(self.model, self.model_config)

        def shutdown(self) -> None:
            pass  # no connection to close

    return ObjectStoreWeightTransferEngine
