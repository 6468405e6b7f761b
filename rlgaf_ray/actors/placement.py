"""Who gets which cores and GPUs: the plan, its refusal where the cluster is too small, and the placement group.

On CPU the roles take turns (the loop is synchronous), so learner and discriminator compute with all cores of their node
while they ask Ray for an equal share only. Rollout workers sample at the same time and share the cores: half of a small
model's sampling is vLLM's own bookkeeping, which one process cannot spread over cores (docs/benchmarks.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from rlgaf_ray.config.schema import Config

NUM_CPU_ROLLOUT_WORKERS = 2  # by default; more have not been measured
MALLOC_TUNABLES = ("hugetlb=1", "mmap_max=0", f"trim_threshold={2**40}")


@dataclass(frozen=True, slots=True)
class Placement:
    num_rollout_workers: int
    cpus_per_actor: float
    gpus_per_actor: float
    threads: int  # of the learner and of the discriminator
    rollout_threads: int  # of each rollout worker: they sample at the same time
    num_learners: int = 1
    num_discriminators: int = 1

    @property
    def num_actors(self) -> int:
        return self.num_learners + self.num_discriminators + self.num_rollout_workers

    @property
    def learner_bundles(self) -> range:
        """The bundle of each of the learner's ranks, in ``bundles``."""
        return range(self.num_learners)

    @property
    def discriminator_bundles(self) -> range:
        return range(self.num_learners, self.num_learners + self.num_discriminators)

    @property
    def rollout_bundles(self) -> range:
        return range(self.num_learners + self.num_discriminators, self.num_actors)

    @property
    def device(self) -> str:
        return "cuda" if self.gpus_per_actor > 0 else "cpu"

    @property
    def bundles(self) -> list[dict[str, float]]:
        """What each actor asks of Ray: learners, then discriminators, then rollout workers."""
        bundle = {"CPU": self.cpus_per_actor}
        if self.gpus_per_actor:
            bundle["GPU"] = self.gpus_per_actor
        return [bundle] * self.num_actors


def plan_placement(config: Config, *, cluster_cpus: float, cluster_gpus: float, node_cpus: int) -> Placement:
    """Share out the cluster. Raises ``ValueError`` with the sum asked and the sum there."""
    num_workers = config.rollout.num_workers
    if num_workers is None:
        num_workers = min(NUM_CPU_ROLLOUT_WORKERS, node_cpus) if config.cluster.gpus_per_actor == 0 else 1
    num_learners, num_discriminators = config.learner.num_workers, config.discriminator.num_workers
    num_actors = num_learners + num_discriminators + num_workers
    # Ray counts in steps of 0.0001: rounded down, so that the shares never exceed the whole.
    equal_share = math.floor(min(1.0, cluster_cpus / num_actors) * 1000) / 1000
    cpus = config.cluster.cpus_per_actor or equal_share
    gpus = config.cluster.gpus_per_actor
    for name, each, there in (("CPUs", cpus, cluster_cpus), ("GPUs", gpus, cluster_gpus)):
        if each * num_actors > there + 1e-9:
            key = f"cluster.{name.lower()}_per_actor"
            raise ValueError(
                f"the run asks for {each * num_actors:g} {name} ({num_actors} actors x {each:g}) and the cluster has "
                f"{there:g}: lower {key} or rollout.num_workers, or add nodes"
            )
    threads = config.cluster.threads or node_cpus
    rollout_threads = max(1, threads // num_workers)
    return Placement(num_workers, cpus, gpus, threads, rollout_threads, num_learners, num_discriminators)


def reserve(placement: Placement, *, timeout: float) -> PlacementGroup:
    """One bundle an actor, on as few nodes as possible. Raises ``TimeoutError`` where the share is not to be had."""
    group = placement_group(placement.bundles, strategy="PACK")
    if not group.wait(timeout):
        remove_placement_group(group)
        raise TimeoutError(
            f"waited {timeout:g} s for {placement.num_actors} bundles of {placement.bundles[0]}; free are "
            f"{ray.available_resources()}: another job holds the rest, or no single node has room for one bundle"
        )
    return group


def actor_environment(threads: int) -> dict[str, str]:
    """Environment of an actor's process, read before torch starts its threads.

    The C library by default gives large blocks back to the system at once and faults every page in again at the next
    step: a fifth of the learner's time. Its tunables keep the memory of the largest step, in huge pages.
    """
    return {
        "OMP_NUM_THREADS": str(threads),
        "GLIBC_TUNABLES": ":".join(f"glibc.malloc.{name}" for name in MALLOC_TUNABLES),
        "TOKENIZERS_PARALLELISM": "false",
    }
