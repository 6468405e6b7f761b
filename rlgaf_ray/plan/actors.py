"""Memory of each actor of a config: which networks it holds and trains, and the size of its passes."""

from __future__ import annotations

import math
from dataclasses import replace

from rlgaf_ray.actors.layout import Placement
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
from rlgaf_ray.plan.shape import BFLOAT16, FLOAT32, GIB, MIB, ModelShape
from rlgaf_ray.plan.work import rows_per_pass, trained_blocks, work_of

# Measured on CPU (docs/scaling.md): an actor's process with its libraries and no model. CUDA's context and library
# workspaces are not measured yet.
CPU_RUNTIME, VLLM_CPU_RUNTIME = 540 * MIB, 680 * MIB
CUDA_RUNTIME = 1 * GIB
SAMPLER_COPIES = 3  # float32 arrays of sequences x vocabulary: logits, their log-softmax, probabilities
MAX_SEQUENCES = 256  # vLLM's default max_num_seqs


def rollout_element(config: Config) -> int:
    return BFLOAT16 if config.model.dtype == "bfloat16" else FLOAT32


def _shards(config: Config, ranks: int) -> int:
    return ranks if config.learner.strategy == "fsdp" else 1


def learner_memory(config: Config, shape: ModelShape, placement: Placement, *, element: int) -> Memory:
    """Return the memory of one rank: the policy, all frozen or averaged networks, and one micro-batch."""
    on_gpu, work, settings = placement.device == "cuda", work_of(config, shape), config.generator.active
    shards = _shards(config, placement.num_learners)
    rows = math.ceil(work.rollouts / placement.num_learners)
    micro = min(rows, rows_per_pass(config))
    rank = config.model.lora.rank
    adapters = rank * shape.layers * shape.adapter_parameters
    averages = (config.generator.average_decay > 0) + (settings.rollout_average > 0)
    references = (rank == 0) + config.needs_base_model  # with adapters the reference is the policy without them
    if on_gpu and shards > 1 and config.learner.fsdp.offload_reference:
        references = 0
    others = float(shape.parameters * (references + averages))
    if settings.needs_discriminator:
        others += shape.scalar_parameters
    policy = trained(adapters or shape.parameters, frozen=shape.parameters if rank else 0, shards=shards)
    critic = trained(shape.scalar_parameters, shards=shards) if settings.trains_critic else Memory()
    kept = activations(
        shape,
        rows=micro,
        length=work.length,
        element=element,
        fused_attention=on_gpu,
        checkpointing=config.learner.activation_checkpointing,
    )
    tokens = micro * work.response_tokens
    tokens = min(tokens, config.learner.logprob_chunk_tokens or tokens)
    kept += vocabulary_activations(shape, tokens=tokens, element=element, exact_kl=settings.kl.exact)
    kept += cast_weights(shape, shape.matrix_parameters, element=element, shards=shards)
    passing = embedding_gradients(shape, output=True) if micro < rows and rank == 0 else 0.0
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
    on_gpu, work = placement.device == "cuda", work_of(config, shape)
    shards = _shards(config, placement.num_discriminators)
    rows = math.ceil((work.rollouts + work.demonstrations) / placement.num_discriminators)
    slices = math.ceil(rows / (3 * rows_per_pass(config)))
    rank, blocks = config.model.lora.rank, trained_blocks(config, shape)
    whole = rank == 0 and blocks == shape.layers
    learned = shape.width + blocks * (rank * shape.adapter_parameters or shape.block_parameters)
    if whole:
        network = trained(shape.scalar_parameters, shards=shards)
    else:
        held = shape.scalar_parameters + rank * shape.layers * shape.adapter_parameters
        network = trained(learned, frozen=held - learned, shards=shards)
    kept = activations(
        replace(shape, layers=blocks),
        rows=math.ceil(rows / slices),
        length=work.length,
        element=element,
        fused_attention=on_gpu,
        checkpointing=config.learner.activation_checkpointing,
    )
    matrices = shape.matrix_parameters - shape.output_parameters
    kept += cast_weights(shape, matrices, element=element, shards=shards)
    passing = embedding_gradients(shape, output=False) if slices > 1 and whole else 0.0
    return replace(
        network,
        activations=kept + passing if slices > 1 else max(0.0, kept - network.gradients),
        runtime=_runtime(on_gpu),
    )


def worker_memory(config: Config, shape: ModelShape, placement: Placement, *, gpu_memory: float) -> Memory:
    """Return the memory of one engine shard. On GPU vLLM's KV cache fills the rest of its memory share."""
    on_gpu, work, element = placement.device == "cuda", work_of(config, shape), rollout_element(config)
    vllm = config.rollout.traits.vllm
    sequences = math.ceil(max(work.rollouts, work.completions) / placement.num_rollout_workers)
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
