"""Weight transfer from learner to engine GPUs through vLLM's NCCL backend: a broadcast in packed buckets.

All engines and the learner's rank 0 join one process group at the learner's address (``Rendezvous``). Every push is a
broadcast that all members enter, and each blocks until the others arrive. Learner and engines do not call each other:
the driver starts both sides with a timeout each, so it knows which side did not respond.

Written for vLLM 0.32, whose trainer drives the engines through a client; ours only sends (``_NoClient``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rlgaf_ray.weights.control import Control
from rlgaf_ray.weights.manifest import DeviceUpdate

if TYPE_CHECKING:
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine

BUCKET_BYTES = 256 * 2**20
NUM_BUCKETS = 2  # double buffering: one is filled while the other is sent


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """Address and size of the broadcast group: the sender and every GPU of every engine."""

    address: str
    port: int
    num_engines: int
    gpus_per_engine: int

    @property
    def world_size(self) -> int:
        return 1 + self.num_engines * self.gpus_per_engine

    def engine_info(self, engine: int) -> dict[str, Any]:
        """Return vLLM's init info for engine number ``engine``, which owns a contiguous range of ranks."""
        return {
            "master_address": self.address,
            "master_port": self.port,
            "rank_offset": 1 + engine * self.gpus_per_engine,
            "world_size": self.world_size,
            "packed": True,
            "packed_buffer_size_bytes": BUCKET_BYTES,
            "packed_num_buffers": NUM_BUCKETS,
        }


def open_address() -> tuple[str, int]:
    """Return this host's address and a free port."""
    from vllm.utils.network_utils import get_ip, get_open_port

    return get_ip(), get_open_port()


def connect(control: Control, rendezvous: Rendezvous, engine: int) -> None:
    """Join the group from the engine side; blocks until all members have joined."""
    control.init_weight_transfer_engine({"init_info": rendezvous.engine_info(engine)})


def receive(control: Control, update: DeviceUpdate) -> None:
    """Receive a broadcast and load it on the engine side; call ``check_announced`` first."""
    control.start_weight_update()
    control.update_weights({"update_info": update_info(update)})
    control.finish_weight_update(weight_version=str(update.policy_version))


def update_info(update: DeviceUpdate) -> dict[str, Any]:
    """Return the names, dtypes and shapes by which both sides split the byte stream."""
    return {
        "names": list(update.shapes),
        "dtype_names": [update.dtypes[name] for name in update.shapes],
        "shapes": [list(shape) for shape in update.shapes.values()],
    }


class NcclSender:
    """The learner side of the broadcast. Ranks other than 0 only take part in gathering sharded weights."""

    def __init__(self, rendezvous: Rendezvous, *, rank: int) -> None:
        from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        self._source = state_source()
        info = NCCLTrainerInitInfo(
            master_address=rendezvous.address,
            master_port=rendezvous.port,
            world_size=rendezvous.world_size,
            packed=True,
            packed_buffer_size_bytes=BUCKET_BYTES,
            packed_num_buffers=NUM_BUCKETS,
            rank=rank,
        )
        self._engine: NCCLTrainerWeightTransferEngine = WeightTransferTrainerFactory.trainer_init(  # type: ignore[assignment]
            info, client=_NoClient(), source=self._source
        )

    def send(self, state: Mapping[str, torch.Tensor]) -> None:
        """Broadcast a state dict; returns once its memory may be modified."""
        if torch.cuda.is_available():  # vLLM packs on its own streams, which do not wait for pending weight updates
            torch.cuda.current_stream().synchronize()
        self._source.state = state  # type: ignore[attr-defined]
        self._engine.send_weights()
        self._source.state = {}  # type: ignore[attr-defined]


class _NoClient:
    """Replaces vLLM's client, because the driver has already started the engines' side."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: Any) -> None: ...

    def finish_weight_update(self, weight_version: str | None = None) -> None: ...


def state_source() -> WeightSource:
    """Create a weight source over all entries of a state dict; vLLM's own (``named_parameters()``) has no buffers."""
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource, materialize_full_tensor

    class StateSource(WeightSource):
        state: Mapping[str, torch.Tensor] = {}

        def metadata(self) -> list[ParamMeta]:
            return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self.state.items()]

        def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in self.state.items():
                yield name, materialize_full_tensor(tensor.detach())

    return StateSource()
