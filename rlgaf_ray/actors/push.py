"""Push new weights from the learner's ranks to the rollout workers.

A push works in one of three ways:

    asynchronous   all parts are put into the object store; a worker loads them before its first request that needs
                   them. For workers that may be sampling, and for weights that fit into one part.
    part by part   the learner gathers a part once the workers have loaded the last but one. For workers that wait, and
                   for in-flight weight updates.
    GPU to GPU     ``GpuTransfer``; learner and workers take part at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ray

from rlgaf_ray.actors.answers import Answers, PendingCall
from rlgaf_ray.actors.dispatch import Dispatcher
from rlgaf_ray.actors.groups import call_all
from rlgaf_ray.actors.transfer import GpuTransfer
from rlgaf_ray.config.schema import Config
from rlgaf_ray.types import Metrics, PolicyNetwork
from rlgaf_ray.weights.choice import Backend, Choice, Site, choose_transfer

Load = Callable[[Any], list[ray.ObjectRef]]
"""Has a worker load one push, unless it already does; returns a reference per part to the worker's answer."""


def loads_asynchronously(config: Config) -> bool:
    """Whether workers may be sampling during a push and load the weights later."""
    return config.schedule.mode == "async" and not config.weights.in_flight


def copies_weights(config: Config) -> bool:
    """Whether the learner makes tensors for each push: merged adapters, or full tensors gathered from shards."""
    sharded = config.learner.strategy == "fsdp" and config.learner.num_workers > 1
    return sharded or config.model.lora.rank > 0


def transfer_between(learners: Sequence[Site], engines: Sequence[Site], config: Config) -> Choice:
    """Choose how weights get from learners to engines at these sites. Raises ``UserError`` as ``choose_transfer``."""
    return choose_transfer(
        config.weights.transfer,
        learners=learners,
        engines=engines,
        device_transfer=config.rollout.traits.device_transfer,
        together=not loads_asynchronously(config),
        copies=copies_weights(config),
    )


class WeightPush:
    """Sends weights to all workers; rank 0 of the learner puts each part into the object store once."""

    def __init__(
        self, backend: Backend, learners: Sequence[Any], workers: Sequence[Any], config: Config, answers: Answers
    ) -> None:
        """The workers' engines must have been started for ``backend``."""
        self.learners = learners
        self.workers = workers
        self.answers = answers
        self.in_flight = config.weights.in_flight
        self.gpus: GpuTransfer | None = None
        if backend != "object_store":
            self.gpus = GpuTransfer(
                backend,
                learners,
                workers,
                gpus_per_engine=config.rollout.tensor_parallel_size,
                wait=answers.get_all,
            )
        self.num_parts: int = answers.get(learners[0], "num_parts", learners[0].num_parts.remote())
        # A single part never has to wait for an earlier one.
        self.later = loads_asynchronously(config) or (self.num_parts == 1 and not self.in_flight)
        # A replacement worker can still load the current weights from there.
        self.in_object_store = self.later and self.gpus is None
        self.loading: dict[Any, ray.ObjectRef] = {}  # in-flight updates: each worker's last load

    def push(self, policy_version: int, network: PolicyNetwork, dispatcher: Dispatcher) -> Callable[[], Metrics]:
        """Start a push.

        The returned function waits until every worker holds these weights or newer ones; it returns the slowest
        worker's metrics.
        """
        if self.in_object_store:
            updates = [self._part(policy_version, part, network) for part in range(self.num_parts)]

            def load(worker: Any) -> list[ray.ObjectRef]:
                # A timeout before the weights are in the store is the learner's, after that the worker's.
                self.answers.wait_for(self.learners[0], "weights_after", updates)
                return [self._load(worker, update) for update in updates]

            return dispatcher.push(load)
        sent: list[PendingCall] = []
        calls: list[dict[Any, ray.ObjectRef]] = []  # one entry per part: worker -> its answer
        if self.gpus is not None:
            received, sent = self.gpus.push(policy_version, network, self._load)
            calls.append(received)
        else:
            for part in range(self.num_parts):
                # At most two parts are in the object store at once, however large the model is.
                update = self._part(policy_version, part, network, *(calls[part - 2].values() if part > 1 else ()))
                calls.append({worker: self._load(worker, update) for worker in self.workers})
        dispatcher.push(lambda worker: [each[worker] for each in calls])  # later requests need these weights

        def slowest() -> Metrics:
            loading = [(worker, "update_weights", ref) for each in calls for worker, ref in each.items()]
            self.answers.get_all([*loading, *sent])
            rows = [self.loaded(worker, [each[worker] for each in calls]) for worker in self.workers]
            return {name: max(row[name] for row in rows) for name in rows[0]}

        return slowest

    def loaded(self, worker: Any, refs: Sequence[ray.ObjectRef]) -> Metrics:
        """Wait until one worker has loaded a push; returns its metrics summed over the parts."""
        rows = [self.answers.get(worker, "update_weights", ref) for ref in refs]
        return {name: sum(row[name] for row in rows) for name in (rows[0] if rows else ())}

    def _part(self, policy_version: int, part: int, network: PolicyNetwork, *tasks: ray.ObjectRef) -> ray.ObjectRef:
        """Gather one part on all ranks once the ``tasks`` have ended; returns the reference to rank 0's answer."""
        return call_all(self.learners, "weights_after", policy_version, part, network, *tasks)[0]

    def _load(self, worker: Any, update: ray.ObjectRef) -> ray.ObjectRef:
        """Have a worker load an update. For in-flight updates (two threads) it waits for the worker's last load."""
        if not self.in_flight:
            return worker.update_weights.remote(update)
        before = (self.loading[worker],) if worker in self.loading else ()
        self.loading[worker] = worker.update_weights.remote(update, *before)
        return self.loading[worker]
