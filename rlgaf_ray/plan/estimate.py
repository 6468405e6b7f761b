"""Apply the formulas of ``memory`` and ``speed`` to a config and its machines."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rlgaf_ray.actors.layout import Placement
from rlgaf_ray.actors.packing import Node, Spot, spots
from rlgaf_ray.actors.push import transfer_between
from rlgaf_ray.config.schema import Config
from rlgaf_ray.plan.actors import discriminator_memory, learner_memory, rollout_element, worker_memory
from rlgaf_ray.plan.memory import Memory, kv_bytes_per_token
from rlgaf_ray.plan.shape import BFLOAT16, FLOAT32, ModelShape
from rlgaf_ray.plan.speed import (
    Push,
    Rates,
    Work,
    discriminator_seconds,
    driver_seconds,
    generator_seconds,
    push,
    rollout_seconds,
)
from rlgaf_ray.plan.work import completing, work_of
from rlgaf_ray.weights.choice import Site

Role = Literal["learner", "discriminator", "rollout"]


@dataclass(frozen=True, slots=True)
class Hardware:
    nodes: Sequence[Node]
    gpu_memory: float  # bytes of one GPU


@dataclass(frozen=True, slots=True)
class Estimate:
    placement: Placement
    spots: list[Spot]  # node and GPUs of each bundle
    memory: dict[Role, Memory]
    phases: dict[str, float]  # seconds per iteration
    overlapped: bool  # whether rollouts run concurrently with the other phases
    sleeping: bool  # whether engines free their GPU memory while the other roles compute (rollout.sleep_level)
    push: Push
    kv_tokens: float  # capacity of one engine's KV cache
    work: Work

    @property
    def iteration_seconds(self) -> float:
        if not self.overlapped:
            return sum(self.phases.values())
        return max(self.phases["rollout"], sum(self.phases.values()) - self.phases["rollout"])

    @property
    def nodes(self) -> list[int]:
        """The node index of each bundle."""
        return [spot.node for spot in self.spots]

    def device_bytes(self) -> float:
        """Return the bytes on the fullest GPU."""
        placement = self.placement
        actors: defaultdict[tuple[int, int], Counter[Role]] = defaultdict(Counter)  # of each GPU
        bundles: dict[Role, range] = {
            "learner": placement.learner_bundles,
            "discriminator": placement.discriminator_bundles,
            "rollout": placement.rollout_bundles,
        }
        for role, indices in bundles.items():
            for spot in (self.spots[index] for index in indices):
                for gpu in spot.gpus:
                    actors[spot.node, gpu][role] += 1
        return max(self._bytes_of(counts) for counts in actors.values())

    def _bytes_of(self, counts: Counter[Role]) -> float:
        """Return the peak bytes of actors that share a GPU: their sum, unless the engines sleep.

        Ranks are then idle while engines sample, and engines have only their libraries while ranks compute. A push
        wakes the engines' weights, also while the discriminator is still computing.
        """
        learner, discriminator, rollout = (self.memory[role] for role in ("learner", "discriminator", "rollout"))

        def total(of_learner: float, of_discriminator: float, of_engine: float) -> float:
            return (
                counts["learner"] * of_learner
                + counts["discriminator"] * of_discriminator
                + counts["rollout"] * of_engine
            )

        if not self.sleeping:
            return total(learner.total, discriminator.total, rollout.total)
        return max(
            total(learner.total, discriminator.total, rollout.runtime),
            total(learner.idle, discriminator.total, rollout.runtime + rollout.weights),
            total(learner.idle, discriminator.idle, rollout.total),
        )


def estimate(
    config: Config, shape: ModelShape, placement: Placement, hardware: Hardware, rates: Rates, *, bfloat16: bool
) -> Estimate:
    """Estimate memory, traffic and time. ``bfloat16``: whether the learner computes under bfloat16 autocast.

    Raises ``UserError`` if the placement does not allow ``weights.transfer``.
    """
    found = spots(placement.bundles, placement.strategy, hardware.nodes)
    assert found is not None, "plan_on rejects placements that do not fit"
    nodes = [spot.node for spot in found]
    sites = [Site(str(spot.node), tuple(f"{spot.node}, {gpu}" for gpu in spot.gpus)) for spot in found]
    element = BFLOAT16 if bfloat16 else FLOAT32
    work = work_of(config, shape)
    memory: dict[Role, Memory] = {
        "learner": learner_memory(config, shape, placement, element=element),
        "discriminator": discriminator_memory(config, shape, placement, element=element),
        "rollout": worker_memory(config, shape, placement, gpu_memory=hardware.gpu_memory),
    }
    transfer = transfer_between(
        [sites[bundle] for bundle in placement.learner_bundles],
        [sites[bundle] for bundle in placement.rollout_bundles],
        config,
    )
    home = nodes[placement.learner_bundles[0]]
    sent = push(
        shape.parameters,
        element=FLOAT32,
        learner_ranks=placement.num_learners,
        split=config.learner.strategy == "fsdp",
        other_nodes=len({nodes[bundle] for bundle in placement.rollout_bundles} - {home}),
        shards=placement.tensor_parallel_size,
        backend=transfer.backend,
    )
    return Estimate(
        placement=placement,
        spots=found,
        memory=memory,
        phases=_phases(config, shape, placement, rates, work, sent),
        overlapped=config.schedule.mode != "sync",
        sleeping=config.rollout.sleep_level > 0,
        push=sent,
        kv_tokens=memory["rollout"].kv_cache
        * placement.tensor_parallel_size
        / kv_bytes_per_token(shape, element=rollout_element(config)),
        work=work,
    )


def _phases(
    config: Config, shape: ModelShape, placement: Placement, rates: Rates, work: Work, sent: Push
) -> dict[str, float]:
    """Return the seconds of each phase. A device is a GPU, or a core that the placement assigns to an actor."""
    on_gpu = placement.device == "cuda"
    of_engine = placement.tensor_parallel_size if on_gpu else placement.rollout_threads
    of_rank = 1 if on_gpu else placement.threads

    def sampling(of: Work) -> float:
        element, engines = rollout_element(config), placement.num_rollout_workers
        return rollout_seconds(shape, of, rates, engines=engines, cores=of_engine, element=element)

    return {
        "rollout": sampling(work),
        **({"Monte-Carlo completions": sampling(completing(config, work))} if work.completions else {}),
        "score and discriminator update": discriminator_seconds(
            shape, work, rates, devices=placement.num_discriminators * of_rank
        ),
        "generator update": generator_seconds(shape, work, rates, devices=placement.num_learners * of_rank),
        "weight push": sent.seconds(rates) * (2 if config.generator.active.rollout_average > 0 else 1),
        "driver": driver_seconds(work),
    }
