"""The resources of a run as placement-group bundles, and the bundle of each actor.

On CPU the roles take turns (the loop is synchronous): learner and discriminator use all cores of their node but request
only an equal share from Ray. Rollout workers sample at the same time and divide the cores between them: for a small
model, half of the sampling time is vLLM's scheduling, which one process cannot parallelize (docs/benchmarks.md).

``cluster.placement``: ``colocate`` puts one actor of each role on every GPU (on CPU: all actors on one node),
``separate`` gives each actor its own GPUs or cores, ``spread`` puts consecutive actors on different nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlgaf_ray.actors.packing import Strategy

Resource = Literal["CPU", "GPU"]
Kind = Literal["auto", "colocate", "separate", "spread"]


@dataclass(frozen=True, slots=True)
class Placement:
    """How many actors of each role a run starts, and the resources and threads of each."""

    num_rollout_workers: int
    cpus_per_actor: float
    gpus_per_actor: float  # per learner rank, discriminator rank, and tensor-parallel shard of a rollout worker
    threads: int  # per rank of the learner and of the discriminator
    rollout_threads: int  # per rollout worker; they sample at the same time
    kind: Kind = "auto"
    num_learners: int = 1
    num_discriminators: int = 1
    tensor_parallel_size: int = 1

    @property
    def num_actors(self) -> int:
        return self.num_rollout_workers + self.num_learners + self.num_discriminators

    @property
    def device(self) -> str:
        return "cuda" if self.gpus_per_actor > 0 else "cpu"

    @property
    def shares_gpus(self) -> bool:
        """Whether a bundle is one GPU that an actor of each role shares."""
        return self.kind == "colocate" and self.device == "cuda"

    @property
    def engines_start_last(self) -> bool:
        """Whether other actors may share an engine's GPU; it then starts after learner and discriminator.

        vLLM profiles memory at startup: memory that another process allocates meanwhile shrinks its KV cache, and
        memory that one frees makes the startup fail.
        """
        return self.device == "cuda" and self.gpus_per_actor <= 0.5

    @property
    def engines_start_in_turn(self) -> bool:
        """Whether several engines may share a GPU; they then start one at a time."""
        return self.engines_start_last and not self.shares_gpus

    @property
    def shared_cores(self) -> bool:
        """Whether learner and discriminator share cores; concurrent updates are then slower than sequential ones."""
        return self.device == "cpu" and self.kind in ("auto", "colocate")

    @property
    def gpus_per_rollout_worker(self) -> float:
        return self.gpus_per_actor * self.tensor_parallel_size

    @property
    def learner_bundles(self) -> range:
        """Indices in ``bundles`` of the learner's ranks."""
        return range(self.num_learners)

    @property
    def discriminator_bundles(self) -> range:
        start = 0 if self.shares_gpus else self.num_learners
        return range(start, start + self.num_discriminators)

    @property
    def rollout_bundles(self) -> range:
        start = 0 if self.shares_gpus else self.num_learners + self.num_discriminators
        return range(start, start + self.num_rollout_workers)

    @property
    def bundles(self) -> list[dict[str, float]]:
        """The bundles to request from Ray: one per actor, or one per GPU if the actors share GPUs."""
        roles = (self.learner_bundles, self.discriminator_bundles, self.rollout_bundles)
        if self.shares_gpus:
            actors_per_gpu = [sum(index in role for role in roles) for index in range(max(map(len, roles)))]
            return [{"CPU": self.cpus_per_actor * count, "GPU": 1.0} for count in actors_per_gpu]
        bundle = {"CPU": self.cpus_per_actor}
        worker = dict(bundle)
        if self.gpus_per_actor:
            bundle["GPU"] = self.gpus_per_actor
            worker["GPU"] = self.gpus_per_rollout_worker
        singles = self.num_learners + self.num_discriminators
        return [bundle] * singles + [worker] * self.num_rollout_workers

    @property
    def strategy(self) -> Strategy:
        """Ray's placement strategy for the bundles."""
        if self.kind == "spread":
            return "SPREAD"
        return "STRICT_PACK" if self.kind == "colocate" and self.device == "cpu" else "PACK"

    def total(self, resource: Resource) -> float:
        return sum(bundle.get(resource, 0.0) for bundle in self.bundles)
