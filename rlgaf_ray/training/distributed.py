"""A group of processes that train one network: replicas (``ddp``) or shards (``fsdp``), and the sums over them.

Every rank sees the whole batch, computes what is cheap (rewards, advantages) for all of it, and passes its share of the
rows through the network. Losses are shares of the whole batch's average, so gradients and metrics are summed, never
averaged. A group of one is the default: it communicates nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import MethodType
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._composable import checkpoint
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from rlgaf_ray.config.learner import LearnerSection
from rlgaf_ray.models.generator import blocks_of, response_hidden
from rlgaf_ray.models.lora import merged_state

BUCKET_BYTES = 25 * 2**20  # of gradients in one message, as torch's own DistributedDataParallel


@dataclass(frozen=True, slots=True)
class Group:
    """Where this process stands; ``Group()`` is alone."""

    rank: int = 0
    size: int = 1
    strategy: Literal["ddp", "fsdp"] = "ddp"
    device: torch.device = torch.device("cpu")

    @property
    def first(self) -> bool:
        """Whether this rank writes files and answers for the group."""
        return self.rank == 0

    @property
    def shards(self) -> bool:
        return self.size > 1 and self.strategy == "fsdp"

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum_numbers(self, values: Iterable[float]) -> list[float]:
        """As ``sum``, of plain numbers in float64."""
        given = list(values)
        if self.size == 1:
            return given
        return self.sum(torch.tensor(given, dtype=torch.float64, device=self.device)).tolist()

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Of replicas, in buckets. A shard's were summed in the backward pass."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None and not isinstance(p.grad, DTensor)]
        for bucket in _buckets(gradients):
            flat = self.sum(torch.cat([gradient.flatten() for gradient in bucket]))
            for gradient, summed in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(summed.view_as(gradient))


ALONE = Group()


def join_group(
    store: dist.Store, *, rank: int, size: int, strategy: Literal["ddp", "fsdp"], device: torch.device, timeout: float
) -> Group:
    """Meet the other ranks over ``store`` (rank 0's); returns when all are there."""
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=timeout),
    )
    return Group(rank, size, strategy, device)


def leave_group() -> Group:
    """For a replica whose group is broken: alone from now on. transformers lets no rank but the first write files."""
    dist.destroy_process_group()
    return ALONE


def prepare(
    network: PreTrainedModel, settings: LearnerSection, group: Group, *, frozen: bool = False, dropout: bool = False
) -> None:
    """Checkpoint a trained transformer's activations and cut its weights over the group, where the settings ask so.

    ``dropout``: the blocks draw random numbers in training, which a recomputed block has to draw again.

    Shards (FSDP2, ``fully_shard``) are gathered block by block as the pass reaches them. A network without blocks (an
    LSTM, a CNN) is small: each rank keeps a replica. Raises ValueError where such a one should be checkpointed.
    """
    blocks = blocks_of(network)
    if settings.activation_checkpointing and not frozen:
        if not blocks:
            raise ValueError(
                f"learner.activation_checkpointing recomputes a transformer's blocks, and {type(network).__name__} has "
                "none: set it to false"
            )
        for block in blocks:
            checkpoint(block, preserve_rng_state=dropout)
    if not group.shards or not blocks:
        return
    offload = frozen and settings.fsdp.offload_reference
    lower = settings.fsdp.mixed_precision
    options: dict[str, Any] = {
        "mesh": init_device_mesh(group.device.type, (group.size,)),
        "offload_policy": CPUOffloadPolicy(pin_memory=group.device.type == "cuda") if offload else OffloadPolicy(),
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if lower else None, reduce_dtype=torch.float32 if lower else None
        ),
    }
    for block in blocks:
        fully_shard(block, **options)
    head = getattr(network, "score", None)
    if head is None:
        network.response_hidden = MethodType(response_hidden, network)  # type: ignore[assignment]
        fully_shard(network, **options)
        register_fsdp_forward_method(network, "response_hidden")
    else:  # a scalar model's body and head are called one after the other
        fully_shard(network.base_model, **options)
        fully_shard(head, **options)
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # summed: a loss is a share of the whole batch's
            module.set_force_sum_reduction_for_comms(True)


def reshard(network: nn.Module) -> None:
    """Let go of what a pass without a backward one left gathered; parameters are then this rank's shards again."""
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """A shard's whole tensor, gathered by all ranks together; any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a shard, sharing its memory; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def cut_like(tensor: Tensor, example: Tensor) -> Tensor:
    """A whole tensor that every rank holds, cut as ``example`` is."""
    if not isinstance(example, DTensor):
        return tensor
    moved = tensor.to(example.to_local().device)
    return distribute_tensor(moved, example.device_mesh, example.placements, src_data_rank=None)


def whole_state(network: nn.Module, group: Group, names: Iterable[str] | None = None) -> dict[str, Tensor] | None:
    """Rank 0 gets the whole ``state_dict`` (or some ``names`` of it), gathered entry by entry; the others None.

    Ties stay ties, adapters are merged. A network that is not cut is not copied, one that is into rank 0's CPU memory.
    """
    gathered: dict[int, Tensor] = {}
    state: dict[str, Tensor] = {}
    for name, tensor in merged_state(network, names).items():
        if id(tensor) not in gathered:
            full = whole(tensor.detach())
            if isinstance(tensor, DTensor):
                full = full.cpu() if group.first else full[:0]
            gathered[id(tensor)] = full
        state[name] = gathered[id(tensor)]
    return state if group.first else None


def restore_whole(network: PreTrainedModel, folder: str | Path) -> None:
    """Load the weights that ``save_pretrained`` wrote for this very architecture; every rank reads them."""
    kind = next(kind for kind in type(network).__mro__ if not issubclass(kind, FSDPModule))
    saved = kind.from_pretrained(folder, dtype=network.dtype, use_safetensors=True).state_dict()  # type: ignore[attr-defined]
    own = network.state_dict()
    network.load_state_dict({name: cut_like(tensor, own[name]) for name, tensor in saved.items()})


def _buckets(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """In order, each of one type and of at most ``BUCKET_BYTES`` unless a tensor alone is larger."""
    buckets: list[list[Tensor]] = []
    filled = 0
    for tensor in tensors:
        if not buckets or filled + tensor.nbytes > BUCKET_BYTES or buckets[-1][0].dtype != tensor.dtype:
            buckets.append([])
            filled = 0
        buckets[-1].append(tensor)
        filled += tensor.nbytes
    return buckets
