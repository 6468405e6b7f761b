"""Data-parallel training of one network with replicas (``ddp``) or shards (``fsdp``).

Every rank gets the full batch, computes rewards and advantages for all of it, and runs the network on its share of the
rows. A rank's loss is its share of the batch average, so gradients and metrics are summed, never averaged. The default
group of one process does not communicate.
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
from rlgaf_ray.errors import UserError
from rlgaf_ray.models.generator import blocks_of, response_hidden
from rlgaf_ray.models.lora import merged_state

BUCKET_BYTES = 25 * 2**20  # gradients per all-reduce, the default of DistributedDataParallel


@dataclass(frozen=True, slots=True)
class Group:
    """Rank and size of a process group; ``Group()`` is a single process."""

    rank: int = 0
    size: int = 1
    strategy: Literal["ddp", "fsdp"] = "ddp"
    device: torch.device = torch.device("cpu")

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes files and returns the group's results."""
        return self.rank == 0

    @property
    def shards(self) -> bool:
        """Whether weights are sharded across ranks."""
        return self.size > 1 and self.strategy == "fsdp"

    def sum(self, tensor: Tensor) -> Tensor:
        """All-reduce a tensor to its sum over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum_numbers(self, values: Iterable[float]) -> list[float]:
        """Sum plain numbers over the ranks, in float64."""
        given = list(values)
        if self.size == 1:
            return given
        return self.sum(torch.tensor(given, dtype=torch.float64, device=self.device)).tolist()

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the replicas' gradients in buckets. FSDP has already summed those of shards in the backward pass."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None and not isinstance(p.grad, DTensor)]
        for bucket in _buckets(gradients):
            flat = self.sum(torch.cat([gradient.flatten() for gradient in bucket]))
            for gradient, summed in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(summed.view_as(gradient))


SINGLE_PROCESS = Group()


def join_group(
    store: dist.Store, *, rank: int, size: int, strategy: Literal["ddp", "fsdp"], device: torch.device, timeout: float
) -> Group:
    """Initialise the process group through rank 0's ``store``; blocks until all ranks have joined."""
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=timeout),
    )
    return Group(rank, size, strategy, device)


def leave_group() -> Group:
    """Destroy a broken process group so that a surviving replica is a single process and may write files.

    transformers only lets rank 0 of an initialised group write.
    """
    dist.destroy_process_group()
    return SINGLE_PROCESS


def prepare(
    network: PreTrainedModel,
    settings: LearnerSection,
    group: Group,
    *,
    frozen: bool = False,
    offload: bool = False,
    dropout: bool = False,
) -> None:
    """Enable activation checkpointing and shard the weights across ranks, as configured.

    ``offload``: keep the shards in CPU memory between forward passes. ``dropout``: the blocks use dropout, so
    recomputation must restore the random state.

    FSDP2 (``fully_shard``) gathers shards block by block. A network without transformer blocks (LSTM, CNN) is small, so
    each rank keeps a replica. Raises ``UserError`` if activation checkpointing is set for a trained network without
    blocks.
    """
    blocks = blocks_of(network)
    if settings.activation_checkpointing and not frozen:
        if not blocks:
            raise UserError(
                f"learner.activation_checkpointing recomputes a transformer's blocks, and {type(network).__name__} has "
                "none: set it to false"
            )
        for block in blocks:
            checkpoint(block, preserve_rng_state=dropout)
    if not group.shards or not blocks:
        return
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
    else:  # body and head of a scalar model are called separately
        fully_shard(network.base_model, **options)
        fully_shard(head, **options)
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # sum, because a rank's loss is its share of the batch average
            module.set_force_sum_reduction_for_comms(True)


def reshard(network: nn.Module) -> None:
    """Free parameters left gathered by a forward pass without a backward pass."""
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather the full tensor of a DTensor, a collective over all ranks; return other tensors unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a DTensor without copying; return other tensors unchanged."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, example: Tensor) -> Tensor:
    """Shard a full tensor, present on every rank, like ``example``; no change if that is not a DTensor."""
    if not isinstance(example, DTensor):
        return tensor
    moved = tensor.to(example.to_local().device)
    return distribute_tensor(moved, example.device_mesh, example.placements, src_data_rank=None)


def gather_state_dict(network: nn.Module, group: Group, names: Iterable[str] | None = None) -> dict[str, Tensor] | None:
    """Gather the full ``state_dict`` (or only ``names``) entry by entry on rank 0; other ranks get None.

    Ties are preserved, adapters are merged. Unsharded tensors are not copied; sharded ones go to rank 0's CPU memory.
    """
    gathered: dict[int, Tensor] = {}
    state: dict[str, Tensor] = {}
    for name, tensor in merged_state(network, names).items():
        if id(tensor) not in gathered:
            full = full_tensor(tensor.detach())
            if isinstance(tensor, DTensor):
                full = full.cpu() if group.first else full[:0]
            gathered[id(tensor)] = full
        state[name] = gathered[id(tensor)]
    return state if group.first else None


def load_full_state_dict(network: PreTrainedModel, folder: str | Path) -> None:
    """Load full weights written by ``save_pretrained`` for the same architecture; every rank reads them."""
    model_class = next(kind for kind in type(network).__mro__ if not issubclass(kind, FSDPModule))
    saved = model_class.from_pretrained(folder, dtype=network.dtype, use_safetensors=True).state_dict()  # type: ignore[attr-defined]
    own = network.state_dict()
    network.load_state_dict({name: shard_like(tensor, own[name]) for name, tensor in saved.items()})


def _buckets(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Group tensors in order into buckets of one dtype and at most ``BUCKET_BYTES``; a larger one is on its own."""
    buckets: list[list[Tensor]] = []
    filled = 0
    for tensor in tensors:
        if not buckets or filled + tensor.nbytes > BUCKET_BYTES or buckets[-1][0].dtype != tensor.dtype:
            buckets.append([])
            filled = 0
        buckets[-1].append(tensor)
        filled += tensor.nbytes
    return buckets
