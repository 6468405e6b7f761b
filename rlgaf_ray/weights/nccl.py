"""Weights from the learner's GPU to the engines' by vLLM's own NCCL backend: one broadcast, in packed buckets.

Who waits for whom: every engine and the learner's first rank meet at the learner's address (``Rendezvous``), once. At
a push all of them enter the same broadcast; whoever comes first waits for the rest. Neither side calls the other: the
driver tells both, holds each to a time limit, and so knows who did not answer.

Written for vLLM 0.32, whose trainer side drives the engines through a client; ours only sends (``_Unattended``).
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
NUM_BUCKETS = 2  # one is filled while the other travels


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """Where the members of the broadcast meet, and how many they are: the sender and every GPU of every engine."""

    address: str
    port: int
    num_engines: int
    gpus_per_engine: int

    @property
    def world_size(self) -> int:
        return 1 + self.num_engines * self.gpus_per_engine

    def engine_info(self, engine: int) -> dict[str, Any]:
        """What engine number ``engine`` is told. Engines know nothing of one another: each has ranks of its own."""
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
    """An address of this host and a free port on it."""
    from vllm.utils.network_utils import get_ip, get_open_port

    return get_ip(), get_open_port()


def connect(control: Control, rendezvous: Rendezvous, engine: int) -> None:
    """The engine's part of the meeting; returns when all have come."""
    control.init_weight_transfer_engine({"init_info": rendezvous.engine_info(engine)})


def receive(control: Control, update: DeviceUpdate) -> None:
    """The engine's part of a push; the update was checked before (``check_announced``)."""
    control.start_weight_update()
    control.update_weights({"update_info": update_info(update)})
    control.finish_weight_update(weight_version=str(update.policy_version))


def update_info(update: DeviceUpdate) -> dict[str, Any]:
    """What both sides cut the stream of bytes by."""
    return {
        "names": list(update.shapes),
        "dtype_names": [update.dtypes[name] for name in update.shapes],
        "shapes": [list(shape) for shape in update.shapes.values()],
    }


class NcclSender:
    """The learner's part. On ranks other than the first it only takes part in the gathering of sharded weights."""

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
            info, client=_Unattended(), source=self._source
        )

    def send(self, state: Mapping[str, torch.Tensor]) -> None:
        """Broadcast a state dict; returns when its memory may change again."""
        if torch.cuda.is_available():  # vLLM packs on streams of its own, which do not wait for what made the weights
            torch.cuda.current_stream().synchronize()
        self._source.state = state  # type: ignore[attr-defined]
        self._engine.send_weights()
        self._source.state = {}  # type: ignore[attr-defined]


class _Unattended:
    """In place of vLLM's client: the driver has told the engines already."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: Any) -> None: ...

    def finish_weight_update(self, weight_version: str | None = None) -> None: ...


def state_source() -> WeightSource:
    """A source of every entry of a state dict: vLLM's own walks ``named_parameters()``, which drops tied copies."""
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource, materialize_full_tensor

    class StateSource(WeightSource):
        state: Mapping[str, torch.Tensor] = {}

        def metadata(self) -> list[ParamMeta]:
            return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self.state.items()]

        def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in self.state.items():
                yield name, materialize_full_tensor(tensor.detach())

    return StateSource()
