"""Transfer weights between the GPUs of actors. The driver calls sender and receivers, each with a timeout.

    ipc    learner: share -> handles          engines: copy from the learner's memory      learner: release
    nccl   learner: announce -> message       engines: receive  ||  learner: broadcast

Rank 0 of the learner announces and broadcasts; the other ranks take part in gathering sharded weights, entry by entry.
With ``ipc`` every rank shares its own full copy with the engines on its GPU.

An actor runs its calls in order, so the learner's next step starts after its last call of the transfer; with ``ipc``
that is after every engine has copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rlgaf_ray.actors.answers import PendingCall
from rlgaf_ray.actors.groups import call_all
from rlgaf_ray.types import PolicyNetwork
from rlgaf_ray.weights.choice import Backend
from rlgaf_ray.weights.nccl import Rendezvous

WaitForAll = Callable[[Sequence[PendingCall]], list[Any]]
"""Returns results in order, as ``Answers.get_all``; raises an ``ActorFailure`` on a failure or timeout."""


class GpuTransfer:
    """One of vLLM's weight transfer backends between the learner's ranks and the engines."""

    def __init__(
        self,
        backend: Backend,
        learners: Sequence[Any],
        workers: Sequence[Any],
        *,
        gpus_per_engine: int,
        wait: WaitForAll,
    ) -> None:
        assert backend in ("nccl", "ipc"), backend
        self.backend = backend
        self.learners = learners
        self.workers = workers
        if backend == "nccl":
            sender = learners[0]
            (address,) = wait([(sender, "open_address", sender.open_address.remote())])
            host, port = address
            rendezvous = Rendezvous(host, port, num_engines=len(workers), gpus_per_engine=gpus_per_engine)
            calls = [(worker, worker.join_transfer.remote(rendezvous, index)) for index, worker in enumerate(workers)]
            calls += [(learner, learner.join_transfer.remote(rendezvous)) for learner in learners]
            wait([(actor, "join_transfer", call) for actor, call in calls])

    def push(
        self, policy_version: int, network: PolicyNetwork, load: Callable[[Any, Any], Any]
    ) -> tuple[dict[Any, Any], list[PendingCall]]:
        """Start a push; returns the reference to each worker's answer and the pending calls of the learners.

        ``load(worker, update)`` has a worker load an update.
        """
        if self.backend == "ipc":
            update, *others = call_all(self.learners, "share", policy_version=policy_version, network=network)
            received = {worker: load(worker, update) for worker in self.workers}
            sent = [(learner, "release", learner.release.remote(*received.values())) for learner in self.learners]
            return received, [
                *((rank, "share", ref) for rank, ref in zip(self.learners[1:], others, strict=True)),
                *sent,
            ]
        update = self.learners[0].announce.remote(policy_version, network=network)
        received = {worker: load(worker, update) for worker in self.workers}
        sent = [(learner, "broadcast", learner.broadcast.remote(network=network)) for learner in self.learners]
        return received, sent
