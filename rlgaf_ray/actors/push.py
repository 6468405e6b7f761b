"""New weights from the learner's ranks to the rollout workers.

A push takes one of three ways:

    in their own time   a worker that may be sampling, or one that gets all weights in one part, takes them from the
                        object store when it comes to what was asked for after them
    part by part        workers that wait: a part is made once the last but one is loaded
    now                 over GPUs (``GpuTransfer``), where learner and workers meet; and in mid-flight
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ray

from rlgaf_ray.actors.answers import Answers, Asked
from rlgaf_ray.actors.dispatch import Dispatcher
from rlgaf_ray.actors.groups import call_all
from rlgaf_ray.actors.transfer import GpuTransfer
from rlgaf_ray.config.schema import Config
from rlgaf_ray.types import Metrics, PolicyNetwork
from rlgaf_ray.weights.choice import Backend

Load = Callable[[Any], list[ray.ObjectRef]]
"""Has a worker load one push, or knows that it does: the references to its answers, one a part."""


def in_their_own_time(config: Config) -> bool:
    """Whether workers may be sampling when weights are pushed, and take them later."""
    return config.schedule.mode == "async" and not config.weights.mid_flight


class WeightPush:
    """Each part of an update is put into the object store once, by the learner's first rank; all workers read it."""

    def __init__(
        self, backend: Backend, learners: Sequence[Any], workers: Sequence[Any], config: Config, answers: Answers
    ) -> None:
        """The workers' engines have started, for ``backend``."""
        self.learners = learners
        self.workers = workers
        self.answers = answers
        self.mid_flight = config.weights.mid_flight
        self.gpus: GpuTransfer | None = None
        if backend != "object_store":
            self.gpus = GpuTransfer(
                backend,
                learners,
                workers,
                gpus_per_engine=config.rollout.tensor_parallel_size,
                wait=answers.of_all,
            )
        self.num_parts: int = answers.get(learners[0], "num_parts", learners[0].num_parts.remote())
        # One part needs no taking turns.
        self.later = in_their_own_time(config) or (self.num_parts == 1 and not self.mid_flight)
        # A worker that comes later finds them in the object store still.
        self.kept = self.later and self.gpus is None
        self.loading: dict[Any, ray.ObjectRef] = {}  # mid-flight: what each worker was last asked to load

    def push(self, policy_version: int, network: PolicyNetwork, dispatcher: Dispatcher) -> Callable[[], Metrics]:
        """Starts at once. Waits for all workers to have these weights or newer ones; metrics are the slowest one's."""
        if self.later and self.gpus is None:
            # All parts wait for the workers in the object store.
            updates = [self._part(policy_version, part, network) for part in range(self.num_parts)]

            def load(worker: Any) -> list[ray.ObjectRef]:
                # Whoever is silent is the learner until they are made, and the worker only then.
                self.answers.wait_for(self.learners[0], "weights_after", updates)
                return [self._load(worker, update) for update in updates]

            return dispatcher.push(load)
        sent: list[Asked] = []
        calls: list[dict[Any, ray.ObjectRef]] = []  # of each part, every worker's
        if self.gpus is not None:
            received, sent = self.gpus.push(policy_version, network, self._load)
            calls.append(received)
        else:
            for part in range(self.num_parts):
                # The object store holds two parts, however large the model is.
                update = self._part(policy_version, part, network, *(calls[part - 2].values() if part > 1 else ()))
                calls.append({worker: self._load(worker, update) for worker in self.workers})
        dispatcher.push(lambda worker: [each[worker] for each in calls])  # what is asked for from here needs them

        def slowest() -> Metrics:
            loading = [(worker, "update_weights", ref) for each in calls for worker, ref in each.items()]
            self.answers.of_all([*loading, *sent])
            rows = [self.loaded(worker, [each[worker] for each in calls]) for worker in self.workers]
            return {name: max(row[name] for row in rows) for name in rows[0]}

        return slowest

    def loaded(self, worker: Any, refs: Sequence[ray.ObjectRef]) -> Metrics:
        """Waits for one worker to have loaded a push: the sums over its parts."""
        rows = [self.answers.get(worker, "update_weights", ref) for ref in refs]
        return {name: sum(row[name] for row in rows) for name in (rows[0] if rows else ())}

    def _part(self, policy_version: int, part: int, network: PolicyNetwork, *tasks: ray.ObjectRef) -> ray.ObjectRef:
        """Gathered by all ranks once the ``tasks`` have ended; the first one's answer."""
        return call_all(self.learners, "weights_after", policy_version, part, network, *tasks)[0]

    def _load(self, worker: Any, update: ray.ObjectRef) -> ray.ObjectRef:
        """In mid-flight behind what the worker loads already, which has two threads then."""
        if not self.mid_flight:
            return worker.update_weights.remote(update)
        before = (self.loading[worker],) if worker in self.loading else ()
        self.loading[worker] = worker.update_weights.remote(update, *before)
        return self.loading[worker]
