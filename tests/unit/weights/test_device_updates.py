"""Messages of GPU-to-GPU weight pushes, with mocks of vLLM's control plane and NCCL, so no GPU is needed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from rlgaf_ray.types import WeightUpdate
from rlgaf_ray.weights import ipc, nccl, receive
from rlgaf_ray.weights.manifest import DeviceUpdate, announce
from rlgaf_ray.weights.nccl import Rendezvous
from rlgaf_ray.weights.state import Receipt, to_arrays, update_checksum

STATE = {"b.weight": torch.zeros(2, 3), "a.bias": torch.zeros(4, dtype=torch.bfloat16)}
EXPECTED = {"a.bias": (4,), "b.weight": (2, 3)}


class MockControl:
    """Records the calls that vLLM would receive."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def init_weight_transfer_engine(self, request: dict[str, Any]) -> None:
        self.calls.append(("init", request["init_info"]))

    def start_weight_update(self) -> None:
        self.calls.append(("start", None))

    def update_weights(self, request: dict[str, Any]) -> None:
        self.calls.append(("update", request["update_info"]))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.calls.append(("finish", weight_version))

    def reset_prefix_cache(self) -> bool:
        self.calls.append(("reset", None))
        return True


def test_a_manifest_lists_entries_in_sending_order() -> None:
    update = announce(STATE, policy_version=7)
    assert list(update.shapes.items()) == [("b.weight", (2, 3)), ("a.bias", (4,))]  # sending order
    assert update.dtypes == {"b.weight": "float32", "a.bias": "bfloat16"}
    assert update.num_bytes == 2 * 3 * 4 + 4 * 2
    assert receive.megabytes(update) == 32 / 1e6


def test_all_backends_share_one_checksum() -> None:
    arrays: WeightUpdate = to_arrays(STATE, 7)
    assert announce(STATE, 7).checksum == update_checksum(arrays)
    assert announce(STATE, 8).checksum != update_checksum(arrays)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"policy_version": 8}, "the manifest of version 8 is corrupted"),
        ({"shapes": {"b.weight": (3, 2), "a.bias": (4,)}}, "is corrupted"),
        ({"dtypes": {"b.weight": "float16", "a.bias": "bfloat16"}}, "is corrupted"),
        ({"shapes": {"b.weight": (2, 3)}}, "is corrupted"),
        ({"handles": {"b.weight": {}}}, "and their handles differ in 'a.bias'"),
    ],
)
def test_a_corrupted_manifest_raises(change: dict[str, Any], sentence: str) -> None:
    update = dataclasses.replace(announce(STATE, 7), **change)
    with pytest.raises(ValueError, match=sentence):
        receive.check(update, Receipt(EXPECTED))


@pytest.mark.parametrize(
    ("expected", "sentence"),
    [
        (EXPECTED | {"lm_head.weight": (2, 3)}, r"lack 'lm_head\.weight': send every entry of state_dict\(\)"),
        ({"a.bias": (4,)}, "have 'b.weight', which the engine's model lacks"),
        (EXPECTED | {"b.weight": (3, 2)}, r"of shape \[2, 3\], but the engine's model has \[3, 2\]"),
    ],
)
def test_weights_of_another_model_raise_before_the_transfer(expected, sentence: str) -> None:
    update = announce(STATE, 7)
    receive.check(update, Receipt(EXPECTED))
    with pytest.raises(ValueError, match=sentence):
        receive.check(update, Receipt(expected))


def test_an_object_store_update_may_have_several_chunks() -> None:
    control, receipt = MockControl(), Receipt(EXPECTED)
    for part, name in enumerate(STATE):
        update = to_arrays({name: STATE[name]}, 7, part=part, num_parts=2)
        receive.check(update, receipt)
        receive.load(control, update, same_process=True)
    assert [call for call, _ in control.calls] == ["start", "update", "update", "finish", "reset"]
    with pytest.raises(ValueError, match=r"lack 'b\.weight'"):
        receive.check(to_arrays({"a.bias": STATE["a.bias"]}, 8), receipt)


def test_engines_of_a_broadcast_have_distinct_ranks() -> None:
    rendezvous = Rendezvous("10.0.0.1", 4000, num_engines=3, gpus_per_engine=2)
    assert rendezvous.world_size == 7  # the sender is rank 0
    infos = [rendezvous.engine_info(engine) for engine in range(3)]
    assert [info["rank_offset"] for info in infos] == [1, 3, 5]
    assert {info["world_size"] for info in infos} == {7}
    assert {(info["master_address"], info["master_port"]) for info in infos} == {("10.0.0.1", 4000)}


def test_control_messages_over_nccl() -> None:
    control = MockControl()
    receive.load(control, announce(STATE, 7), same_process=True)
    message = {"names": ["b.weight", "a.bias"], "dtype_names": ["float32", "bfloat16"], "shapes": [[2, 3], [4]]}
    assert control.calls == [("start", None), ("update", message), ("finish", "7"), ("reset", None)]


def test_control_messages_over_ipc() -> None:
    control = MockControl()
    ipc.connect(control)
    handles = {"a.bias": {"card": ("A",)}, "b.weight": {"card": ("B",)}}
    receive.load(control, announce(STATE, 7, handles), same_process=True)
    (init, first), (start, _), (_, message), *rest = control.calls
    assert (init, first, start) == ("init", {"packed": False}, "start")
    assert message["names"] == ["b.weight", "a.bias"]
    assert message["ipc_handles"] == [{"card": ("B",)}, {"card": ("A",)}]
    assert rest == [("finish", "7"), ("reset", None)]


def test_handles_of_all_ranks_are_merged_per_entry() -> None:
    ranks = [{"w": {"GPU-1": (1,)}}, {"w": {"GPU-2": (2,)}}]
    assert ipc.merge_handles(ranks) == {"w": {"GPU-1": (1,), "GPU-2": (2,)}}  # type: ignore[arg-type]


vllm = pytest.importorskip("vllm", reason="vLLM is not installed")


def test_vllm_parses_our_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's request dataclasses reject unknown and missing fields."""
    from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferInitInfo, IPCWeightTransferUpdateInfo
    from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo
    from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferUpdateInfo

    assert NCCLWeightTransferInitInfo(**Rendezvous("h", 1, 1, 1).engine_info(0)).packed
    assert NCCLWeightTransferUpdateInfo(**nccl.update_info(announce(STATE, 7))).names == ["b.weight", "a.bias"]
    control = MockControl()
    ipc.connect(control)
    receive.load(control, announce(STATE, 7, {name: {"card": ("A",)} for name in STATE}), same_process=True)
    assert not IPCWeightTransferInitInfo(**control.calls[0][1]).packed
    assert IPCWeightTransferUpdateInfo(**control.calls[2][1]).ipc_handles == [{"card": ("A",)}] * 2
    receive.load(control, announce(STATE, 8, {name: {"card": ("B",)} for name in STATE}), same_process=False)
    as_text = control.calls[-3][1]
    assert isinstance(as_text["ipc_handles_pickled"], str)
    with pytest.raises(ValueError, match="VLLM_ALLOW_INSECURE_SERIALIZATION=1"):
        IPCWeightTransferUpdateInfo(**as_text)
    monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")  # as set by prepare_children
    assert IPCWeightTransferUpdateInfo(**as_text).ipc_handles == [{"card": ("B",)}] * 2


class MockBroadcast:
    """Records the tensors that vLLM's packed producer would broadcast."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, torch.Tensor]] = []

    def __call__(self, *, iterator, group, src, post_iter_func, buffer_size_bytes, num_buffers) -> None:
        assert (group, src, buffer_size_bytes, num_buffers) == ("group", 0, nccl.BUCKET_BYTES, nccl.NUM_BUCKETS)
        self.sent += [(item[0], post_iter_func(item)) for item in iterator]


def test_the_sender_broadcasts_every_entry_in_manifest_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's trainer engine with mocks of rendezvous and broadcast."""
    from vllm.distributed.weight_transfer import nccl_engine

    broadcast = MockBroadcast()
    met: list[Any] = []

    def meet(info: Any) -> str:
        met.append(info)
        return "group"

    monkeypatch.setattr(nccl_engine, "open_trainer_endpoint", meet)
    monkeypatch.setattr(nccl_engine, "packed_nccl_broadcast_producer", broadcast)
    sender = nccl.NcclSender(Rendezvous("10.0.0.1", 4000, num_engines=2, gpus_per_engine=1), rank=0)
    assert (met[0].master_address, met[0].master_port, met[0].world_size) == ("10.0.0.1", 4000, 3)
    tied = torch.ones(2, 2, requires_grad=True)
    state = {"embedding": tied, "bias": torch.zeros(3), "lm_head": tied}
    sender.send(state)
    assert [name for name, _ in broadcast.sent] == list(announce(state, 0).shapes)
    assert all(torch.equal(tensor, state[name]) for name, tensor in broadcast.sent)
    sender.send({"embedding": tied * 2})  # another state in every push
    assert torch.equal(broadcast.sent[-1][1], torch.full((2, 2), 2.0))


def test_other_ranks_only_gather_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.distributed.weight_transfer import nccl_engine

    broadcast = MockBroadcast()
    monkeypatch.setattr(nccl_engine, "packed_nccl_broadcast_producer", broadcast)
    gathered = []

    class MockShard(torch.Tensor):
        def full_tensor(self) -> torch.Tensor:
            gathered.append(1)
            return torch.zeros(4)

    sender = nccl.NcclSender(Rendezvous("10.0.0.1", 4000, num_engines=2, gpus_per_engine=1), rank=1)
    sender.send({"a": torch.zeros(2).as_subclass(MockShard), "b": torch.zeros(2).as_subclass(MockShard)})
    assert len(gathered) == 2
    assert broadcast.sent == []


def test_device_updates_can_be_pickled() -> None:
    import pickle

    update = announce(STATE, 7, {name: {"card": ("A", 1)} for name in STATE})
    back: DeviceUpdate = pickle.loads(pickle.dumps(update))
    receive.check(back, Receipt(EXPECTED))
    assert back.handles == update.handles
