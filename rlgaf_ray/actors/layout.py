"""What a placement asks of Ray: its bundles, and which of them each actor lives in.

On CPU the roles take turns (the loop is synchronous), so learner and discriminator compute with all cores of their node
while they ask Ray for an equal share only. Rollout workers sample at the same time and share the cores: half of a small
model's sampling is vLLM's own bookkeeping, which one process cannot spread over cores (docs/benchmarks.md).

``cluster.placement`` says more: ``colocate`` gives every GPU one actor of each role (on CPU: all of them one node's
cores), ``separate`` gives each actor GPUs or cores of its own, ``spread`` puts neighbours on different nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlgaf_ray.actors.packing import Strategy

Resource = Literal["CPU", "GPU"]
Kind = Literal["auto", "colocate", "separate", "spread"]


@dataclass(frozen=True, slots=True)
class Placement:
    num_rollout_workers: int
    cpus_per_actor: float
    gpus_per_actor: float  # of a learner's rank, a discriminator's rank, a tensor-parallel shard of a rollout worker
    threads: int  # of each rank of the learner and of the discriminator
    rollout_threads: int  # of each rollout worker: they sample at the same time
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
        """Whether an engine has to make room on its GPU while the others compute (vLLM's sleep mode)."""
        return self.kind == "colocate" and self.device == "cuda"

    @property
    def engines_start_last(self) -> bool:
        """Whether others may use an engine's GPU: it starts once learner and discriminator have their memory.

        What others take meanwhile vLLM books as its own, and starts with a smaller cache; where they give memory back
        it does not start.
        """
        return self.device == "cuda" and self.gpus_per_actor <= 0.5

    @property
    def engines_start_in_turn(self) -> bool:
        """Whether engines may share a GPU with one another: then only one of them starts at a time."""
        return self.engines_start_last and not self.shares_gpus

    @property
    def shared_cores(self) -> bool:
        """Whether learner and discriminator compute on the same cores: updates at once are slower than in turn."""
        return self.device == "cpu" and self.kind in ("auto", "colocate")

    @property
    def gpus_per_rollout_worker(self) -> float:
        return self.gpus_per_actor * self.tensor_parallel_size

    @property
    def learner_bundles(self) -> range:
        """The bundle of each of the learner's ranks, in ``bundles``."""
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
        """What is asked of Ray: a bundle an actor, or, where GPUs are shared, a whole GPU for all that live on it."""
        roles = (self.learner_bundles, self.discriminator_bundles, self.rollout_bundles)
        if self.shares_gpus:
            lodgers = [sum(index in role for role in roles) for index in range(max(map(len, roles)))]
            return [{"CPU": self.cpus_per_actor * count, "GPU": 1.0} for count in lodgers]
        bundle = {"CPU": self.cpus_per_actor}
        worker = dict(bundle)
        if self.gpus_per_actor:
            bundle["GPU"] = self.gpus_per_actor
            worker["GPU"] = self.gpus_per_rollout_worker
        singles = self.num_learners + self.num_discriminators
        return [bundle] * singles + [worker] * self.num_rollout_workers

    @property
    def strategy(self) -> Strategy:
        """How Ray spreads the bundles over nodes."""
        if self.kind == "spread":
            return "SPREAD"
        return "STRICT_PACK" if self.kind == "colocate" and self.device == "cpu" else "PACK"

    def total(self, resource: Resource) -> float:
        return sum(bundle.get(resource, 0.0) for bundle in self.bundles)
