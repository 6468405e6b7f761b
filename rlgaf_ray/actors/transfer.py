"""Weights over GPUs between actors: the driver tells sender and receivers what to do, and holds each to a time limit.

    ipc    learner: share -> handles          engines: copy from the learner's memory      learner: release
    nccl   learner: announce -> message       engines: receive  ||  learner: broadcast

The learner's next step waits for its own part to end, in an actor's order of calls; with ``ipc`` its part ends when
every engine has copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rlgaf_ray.training.learner import Learner
from rlgaf_ray.types import Metrics, PolicyNetwork
from rlgaf_ray.weights import nccl
from rlgaf_ray.weights.choice import Backend, Site, current_site
from rlgaf_ray.weights.ipc import IpcSender
from rlgaf_ray.weights.manifest import DeviceUpdate, announce
from rlgaf_ray.weights.nccl import NcclSender, Rendezvous

Call = tuple[Any, str, Any]  # an actor, the method that was called, the reference to its answer
WaitForAll = Callable[[Sequence[Call]], list[Any]]
"""Answers in order. The first actor to fail, or those that do not answer in time, are named by an ``ActorFailure``."""


class LearnerWorker(Learner):
    """The learner in an actor's own process, from where it sends its weights."""

    def site(self) -> Site:
        return current_site(self.device.type)

    def open_address(self) -> tuple[str, int]:
        return nccl.open_address()

    def meet(self, rendezvous: Rendezvous, *, rank: int = 0) -> None:
        """Returns when all engines have come."""
        self.nccl_sender = NcclSender(rendezvous, rank=rank)

    def announce(self, policy_version: int, *, network: PolicyNetwork) -> DeviceUpdate:
        return announce(self.state(network), policy_version)

    def broadcast(self, *, network: PolicyNetwork) -> None:
        self.nccl_sender.send(self.state(network))

    def share(self, policy_version: int, *, network: PolicyNetwork) -> DeviceUpdate:
        self.ipc_sender = IpcSender()
        return self.ipc_sender.share(self.state(network), policy_version)

    def release(self, *received: Metrics) -> None:
        """Ray starts this only once every engine's answer, passed as a reference, is there."""
        self.ipc_sender.release()


class GpuTransfer:
    """One of vLLM's own backends, opened between a learner and its engines."""

    def __init__(
        self, backend: Backend, learner: Any, workers: Sequence[Any], *, gpus_per_engine: int, wait: WaitForAll
    ) -> None:
        assert backend in ("nccl", "ipc"), backend
        self.backend = backend
        self.learner = learner
        self.workers = workers
        self.wait = wait
        if backend == "nccl":
            (address,) = wait([(learner, "open_address", learner.open_address.remote())])
            host, port = address
            rendezvous = Rendezvous(host, port, num_engines=len(workers), gpus_per_engine=gpus_per_engine)
            meetings = [(worker, "meet", worker.meet.remote(rendezvous, index)) for index, worker in enumerate(workers)]
            wait([*meetings, (learner, "meet", learner.meet.remote(rendezvous))])

    def push(self, policy_version: int, network: PolicyNetwork) -> Callable[[], list[Metrics]]:
        """Starts at once; the result waits for all, and gives what each engine says."""
        announcing = self.learner.share if self.backend == "ipc" else self.learner.announce
        update = announcing.remote(policy_version, network=network)
        received = [(worker, "update_weights", worker.update_weights.remote(update)) for worker in self.workers]
        if self.backend == "ipc":
            sent = (self.learner, "release", self.learner.release.remote(*(ref for _, _, ref in received)))
        else:
            sent = (self.learner, "broadcast", self.learner.broadcast.remote(network=network))
        return lambda: self.wait([*received, sent])[:-1]
