"""Seconds and bytes of each phase of an iteration, from the shape of the model, to find the bottleneck.

Pure arithmetic over assumed rates (``ASSUMED_GPU``, ``ASSUMED_CORE``), which every plan prints. The ranking of the
phases is meaningful, their exact seconds are not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rlgaf_ray.plan.memory import kv_bytes_per_token
from rlgaf_ray.plan.shape import ModelShape
from rlgaf_ray.weights.choice import Backend

BACKWARD = 2  # cost of a backward pass in forward passes: gradients of the inputs, and of the weights


@dataclass(frozen=True, slots=True)
class Rates:
    """Rates of one device (a GPU or a CPU core) and its links."""

    flops: float  # per second, achieved by matrix products in training
    memory: float  # bytes per second, achieved in decoding
    network: float  # bytes per second between two nodes
    host: float  # bytes per second from the host's memory to the device
    step_seconds: float  # engine overhead per decoding step
    token_seconds: float  # engine overhead per token of a step


# 990 TFLOP/s of dense bfloat16 at 40 %, 3.35 TB/s at 70 %, 400 Gbit/s, PCIe 5 x16: H100 data sheet, usual utilisation.
ASSUMED_GPU = Rates(flops=4e14, memory=2.3e12, network=5e10, host=5e10, step_seconds=3e-3, token_seconds=5e-6)
# From docs/benchmarks.md: an update of 64 rollouts of the built-in model takes 0.23 s on two cores with AVX512_BF16,
# and two engines with one core each sample them in 0.27 s, most of it vLLM's overhead. Network: 10 Gbit/s.
ASSUMED_CORE = Rates(flops=9e10, memory=1e10, network=1.2e9, host=1e10, step_seconds=0.0, token_seconds=2.5e-4)

DRIVER_SECONDS, DRIVER_SECONDS_PER_ROLLOUT = 0.02, 1e-4  # the limit that benchmarks/scaling.py checks


@dataclass(frozen=True, slots=True)
class Work:
    """Sizes of one iteration."""

    rollouts: int
    prompt_tokens: int
    response_tokens: int
    demonstrations: int  # real and contrast rows per discriminator update
    discriminator_updates: float  # per generator update
    generator_passes: int = 1  # PPO: epochs
    reference: bool = True
    completions: int = 0  # SeqGAN: sampled from prefixes of the rollouts, and scored
    generator_backward: float = BACKWARD
    discriminator_backward: float = BACKWARD

    @property
    def length(self) -> int:
        return self.prompt_tokens + self.response_tokens

    @property
    def tokens(self) -> int:
        return self.rollouts * self.length


def forward_flops(shape: ModelShape, *, length: int, head: bool = True) -> float:
    """Return the forward FLOPs per token in a row of ``length``: 2 N + 4 L s q.

    Two per matrix parameter, and 2 s q each for queries times keys and weights times values in every layer (Kaplan et
    al. 2020, arXiv 2001.08361, table 1; without skipping the masked half).
    """
    parameters = shape.matrix_parameters - (0 if head else shape.output_parameters)
    return 2.0 * parameters + 4.0 * shape.layers * length * shape.query_width


def rollout_seconds(shape: ModelShape, work: Work, rates: Rates, *, engines: int, cores: float, element: int) -> float:
    """Return the seconds to sample the rollouts: compute-bound prefill, then R decoding steps.

    A step of B sequences takes the larger of compute, (2 N B) / F, and memory reads, (N e + B s c) / M: the weights
    once and every sequence's KV cache, with s the mean length (Pope et al. 2022, arXiv 2211.05102, section 2). Engine
    overhead is added. ``cores``: devices per engine (shards on GPU, threads on CPU).
    """
    batch = math.ceil(work.rollouts / engines)
    mean_length = work.prompt_tokens + work.response_tokens / 2
    flops, memory = rates.flops * cores, rates.memory * cores
    per_token = forward_flops(shape, length=int(mean_length))
    prefill = batch * work.prompt_tokens * per_token / flops
    read = element * shape.matrix_parameters + batch * mean_length * kv_bytes_per_token(shape, element=element)
    step = max(batch * per_token / flops, read / memory) + rates.step_seconds + batch * rates.token_seconds
    return prefill + work.response_tokens * step


def generator_seconds(shape: ModelShape, work: Work, rates: Rates, *, devices: float) -> float:
    """Return the seconds of a generator update: 3 p for p passes with backward, plus 1 for the reference's forward.

    With frozen weights below adapters, 2 p.
    """
    passes = (1 + work.generator_backward) * work.generator_passes + (1 if work.reference else 0)
    return work.tokens * passes * forward_flops(shape, length=work.length) / (rates.flops * devices)


def training_seconds(shape: ModelShape, rates: Rates, *, rows: float, length: int, devices: float) -> float:
    """Return the seconds of forward and backward over ``rows`` texts, as in the warm-ups."""
    return rows * length * (1 + BACKWARD) * forward_flops(shape, length=length) / (rates.flops * devices)


def discriminator_seconds(shape: ModelShape, work: Work, rates: Rates, *, devices: float) -> float:
    """Return the seconds to score rollouts and completions, and for the updates on rollouts and demonstrations."""
    updates = (1 + work.discriminator_backward) * work.discriminator_updates
    rows = work.rollouts + work.completions + updates * (work.rollouts + work.demonstrations)
    return rows * work.length * forward_flops(shape, length=work.length, head=False) / (rates.flops * devices)


@dataclass(frozen=True, slots=True)
class Push:
    """Bytes over each type of link for one weight push."""

    backend: Backend
    size: float  # of the state dict, tied entries once
    gathered: float  # into rank 0 from the other ranks; over ipc into each rank
    sent: float  # out of the learner's node to engines on others
    received: float  # into each other node with rollout workers
    to_device: float  # into each device of an engine: from host memory or a peer; over ipc from the same GPU

    def seconds(self, rates: Rates) -> float:
        """Return the sum of three sequential steps: gather, network transfer, copy to the device."""
        copy = 2 * self.to_device / rates.memory if self.backend == "ipc" else self.to_device / rates.host
        return self.gathered / rates.network + max(self.sent, self.received) / rates.network + copy


def push(
    parameters: int, *, element: int, learner_ranks: int, split: bool, other_nodes: int, shards: int, backend: Backend
) -> Push:
    """Return the traffic of pushing weights of S bytes from the learner to every engine.

    - gather: with FSDP rank 0 receives all shards but its own, S (n - 1) / n; with DDP nothing
    - ipc: every rank gathers, and the engines copy from the rank on their GPU; nothing else leaves a GPU
    - object store: each other node fetches the object once, and the engines on a node share the copy. In the worst
      case all fetches come from the learner's node, S x nodes over its link
    - nccl (a broadcast over a ring): every link carries S once, for any number of nodes
    - into each device: its shard, S / t
    """
    size = float(parameters * element)
    gathered = size * (learner_ranks - 1) / learner_ranks if split else 0.0
    sent = size * {"ipc": 0, "nccl": min(other_nodes, 1), "object_store": other_nodes}[backend]
    return Push(backend, size, gathered, sent, size if sent else 0.0, size / shards)


def driver_seconds(work: Work) -> float:
    """Return the seconds of the driver: a constant plus a cost per rollout."""
    return DRIVER_SECONDS + DRIVER_SECONDS_PER_ROLLOUT * (work.rollouts + work.completions)


def bottleneck(phases: Mapping[str, float]) -> tuple[str, float]:
    """Return the longest phase and its share of the total time."""
    name = max(phases, key=lambda phase: phases[phase])
    return name, phases[name] / sum(phases.values())
