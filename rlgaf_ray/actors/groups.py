"""Learner and discriminator as groups of actors: how the ranks rendezvous, and how to call all of them."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from torch.distributed import TCPStore

from rlgaf_ray.config.discriminator import BatchNeeds
from rlgaf_ray.config.schema import Config
from rlgaf_ray.data.lengths import Response
from rlgaf_ray.data.storage import Place
from rlgaf_ray.training.algorithm import AlgorithmFactory
from rlgaf_ray.training.discriminator import DiscriminatorFactory
from rlgaf_ray.training.distributed import SINGLE_PROCESS, Group, join_group, leave_group
from rlgaf_ray.training.learner import Learner
from rlgaf_ray.types import Metrics, PolicyNetwork, WeightUpdate
from rlgaf_ray.weights import nccl
from rlgaf_ray.weights.choice import Site, current_site
from rlgaf_ray.weights.ipc import IpcSender
from rlgaf_ray.weights.manifest import DeviceUpdate, announce
from rlgaf_ray.weights.nccl import NcclSender, Rendezvous
from rlgaf_ray.weights.state import without_tied_copies


class RankStore:
    """A ``TCPStore`` in the driver's process through which the ranks of one group rendezvous."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.host = ray.util.get_node_ip_address()
        listening = socket.create_server((self.host, 0))  # listens on the cluster's address only
        self.port = listening.getsockname()[1]
        self.store = TCPStore(
            self.host, self.port, size, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach()
        )

    def member(self, rank: int) -> Member:
        return Member(rank, self.size, self.host, self.port)


@dataclass(frozen=True, slots=True)
class Member:
    """A rank's number and the address of its group's store."""

    rank: int
    size: int
    host: str
    port: int

    def join(self, config: Config, device: str) -> Group:
        timeout = config.cluster.timeout_seconds
        return join_group(
            TCPStore(self.host, self.port, self.size, is_master=False),
            rank=self.rank,
            size=self.size,
            strategy=config.learner.strategy,
            device=torch.device(device),
            timeout=timeout,
        )


class GpuRole:
    """A role that may share its GPU with an engine that sleeps."""

    def empty_cache(self) -> None:
        """Return the memory that torch's allocator keeps to the GPU, before an engine wakes up."""
        torch.cuda.empty_cache()


class LearnerWorker(Learner, GpuRole):
    """The learner, or one rank of it, in its own actor process; it also sends the weights.

    For a transfer between GPUs (``actors.transfer``) every rank is called: sharded weights are gathered by all ranks.
    """

    def __init__(
        self,
        folder: str,
        config: Config,
        *,
        pad_token_id: int,
        device: str,
        new_algorithm: AlgorithmFactory,
        member: Member | None = None,
        base_folder: str | None = None,
    ) -> None:
        super().__init__(
            folder,
            config,
            pad_token_id=pad_token_id,
            device=device,
            group=SINGLE_PROCESS if member is None else member.join(config, device),
            base_folder=base_folder,
            new_algorithm=new_algorithm,
        )

    def site(self) -> Site:
        return current_site(self.device.type)

    def weights_after(
        self, policy_version: int, part: int, network: PolicyNetwork, *tasks: object
    ) -> WeightUpdate | None:
        """Return one part of the weights; Ray runs this only after the ``tasks``, passed as references."""
        return self.weights_part(policy_version, part, network=network)

    def open_address(self) -> tuple[str, int]:
        return nccl.open_address()

    def join_transfer(self, rendezvous: Rendezvous) -> None:
        """Join the NCCL group with the engines. Only rank 0 sends; its call returns once all engines have joined."""
        self.nccl_sender = NcclSender(rendezvous, rank=self.group.rank)

    def sent_state(self, network: PolicyNetwork) -> dict[str, torch.Tensor]:
        """Return what is sent between GPUs: each tensor once. Some of vLLM's models reject tied copies (Gemma 2)."""
        return without_tied_copies(self.state(network), self.policy.network(network))

    def announce(self, policy_version: int, *, network: PolicyNetwork) -> DeviceUpdate:
        return announce(self.sent_state(network), policy_version)

    def broadcast(self, *, network: PolicyNetwork) -> None:
        self.nccl_sender.send(self.sent_state(network))

    def share(self, policy_version: int, *, network: PolicyNetwork) -> DeviceUpdate:
        self.ipc_sender = IpcSender()
        return self.ipc_sender.share(self.sent_state(network), policy_version)

    def release(self, *received: Metrics) -> None:
        """Free the shared memory; Ray runs this only after every engine's answer, passed as a reference."""
        self.ipc_sender.release()

    def save_alone(self, folder: Place) -> None:
        """Save from this replica alone, after its process group has failed."""
        self.group = leave_group()
        self.save(folder)


class DiscriminatorWorker(GpuRole):
    """The discriminator, or one rank of it, in its own actor process."""

    def __init__(
        self,
        folder: str,
        config: Config,
        *,
        pad_token_id: int,
        device: str,
        new: DiscriminatorFactory,
        member: Member | None = None,
    ) -> None:
        group = SINGLE_PROCESS if member is None else member.join(config, device)
        self.discriminator = new(Path(folder), config, pad_token_id=pad_token_id, device=device, group=group)

    def batch_needs(self) -> BatchNeeds:
        return self.discriminator.needs

    def token_scores(self, items: Sequence[Response]) -> tuple[np.ndarray, int]:
        return self.discriminator.token_scores(items)

    def update_after(self, task: object, *batches: Any) -> Metrics:
        """Update the discriminator; Ray runs this only after ``task``, passed as a reference."""
        return self.discriminator.update(*batches)

    def weights(self) -> WeightUpdate | None:
        return self.discriminator.weights()

    def adjust(self, *, learning_rate_factor: float, refresh: bool) -> None:
        self.discriminator.adjust(learning_rate_factor=learning_rate_factor, refresh=refresh)

    def save(self, folder: Place) -> None:
        self.discriminator.save(folder)

    def save_alone(self, folder: Place) -> None:
        """As ``LearnerWorker.save_alone``."""
        self.discriminator.group = leave_group()
        self.discriminator.save(folder)

    def load(self, folder: Place, *, version: int) -> None:
        self.discriminator.load(folder, version=version)


def call_all(actors: Sequence[Any], method: str, *arguments: Any, **options: Any) -> list[ray.ObjectRef]:
    """Call a method on every rank with the same arguments; positional ones are put into the object store once."""
    if len(actors) > 1:
        arguments = tuple(each if isinstance(each, ray.ObjectRef) else ray.put(each) for each in arguments)
    return [getattr(actor, method).remote(*arguments, **options) for actor in actors]
