"""Apply the formulas of ``memory`` and ``speed`` to a config and its machines."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rlgaf_ray.actors.layout import Placement
from rlgaf_ray.actors.packing import Node, Spot, spots
from rlgaf_ray.config.schema import Config
from rlgaf_ray.plan.memory import (
    Memory,
    activations,
    cast_weights,
    embedding_gradients,
    kv_bytes_per_token,
    rollout_memory,
    trained,
    vocabulary_activations,
)
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

Role = Literal["learner", "discriminator", "rollout"]
GIB, MIB = 2**30, 2**20

# Measured on CPU (docs/scaling.md): an actor's process with its libraries and no model. CUDA's context and library
# workspaces are not measured yet.
CPU_RUNTIME, VLLM_CPU_RUNTIME = 540 * MIB, 680 * MIB
CUDA_RUNTIME = 1 * GIB
SAMPLER_COPIES = 3  # float32 arrays of sequences x vocabulary: logits, their log-softmax, probabilities
MAX_SEQUENCES = 256  # vLLM's default max_num_seqs


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
    ring: bool
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
    """Estimate memory, traffic and time. ``bfloat16``: whether the learner computes under bfloat16 autocast."""
    found = spots(placement.bundles, placement.strategy, hardware.nodes)
    assert found is not None, "plan_on rejects placements that do not fit"
    nodes = [spot.node for spot in found]
    element = BFLOAT16 if bfloat16 else FLOAT32
    work = _work(config)
    memory: dict[Role, Memory] = {
        "learner": learner_memory(config, shape, placement, element=element),
        "discriminator": discriminator_memory(config, shape, placement, element=element),
        "rollout": worker_memory(config, shape, placement, gpu_memory=hardware.gpu_memory),
    }
    ring = placement.device == "cuda" and config.weights.transfer != "object_store"
    home = nodes[placement.learner_bundles[0]]
    sent = push(
        shape.parameters,
        element=FLOAT32,
        learner_ranks=placement.num_learners,
        split=config.learner.strategy == "fsdp",
        other_nodes=len({nodes[bundle] for bundle in placement.rollout_bundles} - {home}),
        shards=placement.tensor_parallel_size,
        ring=ring,
    )
    return Estimate(
        placement=placement,
        spots=found,
        memory=memory,
        phases=_phases(config, shape, placement, rates, work, sent),
        overlapped=config.schedule.mode != "sync",
        sleeping=config.rollout.sleep_level > 0,
        push=sent,
        ring=ring,
        kv_tokens=memory["rollout"].kv_cache
        * placement.tensor_parallel_size
        / kv_bytes_per_token(shape, element=_rollout_element(config)),
        work=work,
    )


def _work(config: Config) -> Work:
    settings, needs = config.discriminator, config.discriminator.needs
    real = config.rollout.batch_size if needs.pairs else settings.batch_size
    return Work(
        rollouts=config.rollout.batch_size,
        prompt_tokens=config.task.prompt_tokens,
        response_tokens=config.task.response_tokens,
        demonstrations=real * (1 + needs.contrast + needs.other_prompts),
        discriminator_updates=config.discriminator.updates_per_generator_update,
        generator_passes=config.generator.active.passes,
    )


def _rollout_element(config: Config) -> int:
    return BFLOAT16 if config.model.dtype == "bfloat16" else FLOAT32


def _shards(config: Config, ranks: int) -> int:
    return ranks if config.learner.strategy == "fsdp" else 1


def learner_memory(config: Config, shape: ModelShape, placement: Placement, *, element: int) -> Memory:
    """Return the memory of one rank: the policy, all frozen or averaged networks, and one micro-batch."""
    on_gpu, work, settings = placement.device == "cuda", _work(config), config.generator.active
    shards = _shards(config, placement.num_learners)
    rows = math.ceil(work.rollouts / placement.num_learners)
    micro = min(rows, config.learner.micro_batch_size)
    averages = (config.generator.average_decay > 0) + (settings.rollout_average > 0)
    others = float(shape.parameters * (1 + config.needs_base_model + averages))
    if settings.needs_discriminator:
        others += shape.scalar_parameters
    policy = trained(shape.parameters, shards=shards)
    critic = trained(shape.scalar_parameters, shards=shards) if settings.trains_critic else Memory()
    kept = activations(
        shape,
        rows=micro,
        length=work.length,
        element=element,
        fused_attention=on_gpu,
        checkpointing=config.learner.activation_checkpointing,
    )
    kept += vocabulary_activations(
        shape, tokens=micro * work.response_tokens, element=element, exact_kl=settings.kl.exact
    )
    kept += cast_weights(shape, shape.matrix_parameters, element=element, shards=shards)
    passing = embedding_gradients(shape, output=True) if micro < rows else 0.0
    gradients = policy.gradients + critic.gradients
    return Memory(
        weights=policy.weights + critic.weights,
        gradients=gradients,
        optimizer=policy.optimizer + critic.optimizer,
        reference=FLOAT32 * others / shards,
        # With a single micro-batch, backward frees activations while it allocates the gradients.
        activations=kept + passing if micro < rows else max(0.0, kept - gradients),
        runtime=_runtime(on_gpu),
    )


def discriminator_memory(config: Config, shape: ModelShape, placement: Placement, *, element: int) -> Memory:
    """Return the memory of one rank: the network and a slice of its batch, at most three micro-batches."""
    on_gpu, work = placement.device == "cuda", _work(config)
    shards = _shards(config, placement.num_discriminators)
    rows = math.ceil((work.rollouts + work.demonstrations) / placement.num_discriminators)
    slices = math.ceil(rows / (3 * config.learner.micro_batch_size))
    network = trained(shape.scalar_parameters, shards=shards)
    kept = activations(
        shape,
        rows=math.ceil(rows / slices),
        length=work.length,
        element=element,
        fused_attention=on_gpu,
        checkpointing=config.learner.activation_checkpointing,
    )
    matrices = shape.matrix_parameters - shape.output_parameters
    kept += cast_weights(shape, matrices, element=element, shards=shards)
    passing = embedding_gradients(shape, output=False) if slices > 1 else 0.0
    return replace(
        network,
        activations=kept + passing if slices > 1 else max(0.0, kept - network.gradients),
        runtime=_runtime(on_gpu),
    )


def worker_memory(config: Config, shape: ModelShape, placement: Placement, *, gpu_memory: float) -> Memory:
    """Return the memory of one engine shard. On GPU vLLM's KV cache fills the rest of its memory share."""
    on_gpu, work, element = placement.device == "cuda", _work(config), _rollout_element(config)
    vllm = config.rollout.traits.vllm
    sequences = math.ceil(work.rollouts / placement.num_rollout_workers)
    running = min(sequences, MAX_SEQUENCES) if vllm else sequences
    sampler = float(SAMPLER_COPIES * FLOAT32 * running * shape.vocabulary)
    memory = rollout_memory(
        shape,
        element=element,
        kv_cache=float(config.rollout.kv_cache_mib * MIB),
        shards=placement.tensor_parallel_size,
        runtime=_runtime(on_gpu, vllm=vllm),
        packed=vllm and not on_gpu,
    )
    memory = replace(memory, activations=sampler)
    if not vllm:
        return replace(memory, kv_cache=float(running * work.length * kv_bytes_per_token(shape, element=element)))
    if on_gpu:
        remaining = config.rollout.gpu_memory_utilization * gpu_memory - replace(memory, kv_cache=0.0).total
        return replace(memory, kv_cache=max(0.0, remaining))
    return memory


def _runtime(on_gpu: bool, *, vllm: bool = False) -> float:
    return float(CUDA_RUNTIME if on_gpu else VLLM_CPU_RUNTIME if vllm else CPU_RUNTIME)


def _phases(
    config: Config, shape: ModelShape, placement: Placement, rates: Rates, work: Work, sent: Push
) -> dict[str, float]:
    """Return the seconds of each phase. A device is a GPU, or a core that the placement assigns to an actor."""
    on_gpu = placement.device == "cuda"
    of_engine = placement.tensor_parallel_size if on_gpu else placement.rollout_threads
    of_rank = 1 if on_gpu else placement.threads
    return {
        "rollout": rollout_seconds(
            shape,
            work,
            rates,
            engines=placement.num_rollout_workers,
            cores=of_engine,
            element=_rollout_element(config),
        ),
        "score and discriminator update": discriminator_seconds(
            shape, work, rates, devices=placement.num_discriminators * of_rank
        ),
        "generator update": generator_seconds(shape, work, rates, devices=placement.num_learners * of_rank),
        "weight push": sent.seconds(rates),
        "driver": driver_seconds(work),
    }
