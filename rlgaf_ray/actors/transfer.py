"""Weights over GPUs between actors: the driver tells sender and receivers what to do, and holds each to a time limit.

    ipc    learner: share -> handles          engines: copy from the learner's memory      learner: release
    nccl   learner: announce -> message       engines: receive  ||  learner: broadcast

Of several ranks the first announces and broadcasts; the others help it gather weights that are cut, entry by entry.
With ``ipc`` every rank shares its own, whole copy, for the engines on its GPU.

The learner's next step waits for its own part to end, in an actor's order of calls; with ``ipc`` its part ends when
every engine has copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rlgaf_ray.actors.answers import Asked
from rlgaf_ray.actors.groups import call_all
from rlgaf_ray.types import PolicyNetwork
from rlgaf_ray.weights.choice import Backend
from rlgaf_ray.weights.nccl import Rendezvous

WaitForAll = Callable[[Sequence[Asked]], list[Any]]
"""Answers in order. The first actor to fail, or those that do not answer in time, are named by an ``ActorFailure``."""


class GpuTransfer:
    """One of vLLM's own backends, opened between the learner's ranks and the engines."""

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
            meetings = [(worker, "meet", worker.meet.remote(rendezvous, index)) for index, worker in enumerate(workers)]
            wait([*meetings, *((learner, "meet", learner.meet.remote(rendezvous)) for learner in learners)])

    def push(
        self, policy_version: int, network: PolicyNetwork, load: Callable[[Any, Any], Any]
    ) -> tuple[dict[Any, Any], list[Asked]]:
        """Starts at once: the reference to each worker's answer, and what was asked of the learners.

        ``load`` has a worker load an update.
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
