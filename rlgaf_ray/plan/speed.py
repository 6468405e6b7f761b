"""Seconds and bytes of one iteration, phase by phase, from the shape of the model: which part will hold the others up.

Pure arithmetic over stated rates. The rates are assumptions (``ASSUMED_GPU``, ``ASSUMED_CORE``), printed with every
plan: the order of the phases is what to read, not their third digit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rlgaf_ray.plan.memory import kv_bytes_per_token
from rlgaf_ray.plan.shape import ModelShape

BACKWARD = 2  # forward passes that a backward pass costs


@dataclass(frozen=True, slots=True)
class Rates:
    """What one device (a GPU, or one core of a CPU) does, and what its links carry."""

    flops: float  # per second, of matrix products as they come out in training
    memory: float  # bytes per second, as they come out in decoding
    network: float  # bytes per second between two nodes
    host: float  # bytes per second from the host's memory to the device
    step_seconds: float  # an engine's own work for one decoding step
    token_seconds: float  # and for each token of it


# 990 TFLOP/s of dense bfloat16 at 40 %, 3.35 TB/s at 70 %, 400 Gbit/s, PCIe 5 x16: an H100's data sheet, usual shares.
ASSUMED_GPU = Rates(flops=4e14, memory=2.3e12, network=5e10, host=5e10, step_seconds=3e-3, token_seconds=5e-6)
# From docs/benchmarks.md: an update of 64 rollouts of the built-in model takes 0.23 s on two cores with AVX512_BF16,
# and two engines with a core each sample them in 0.27 s, most of it vLLM's own work. The network: 10 Gbit/s.
ASSUMED_CORE = Rates(flops=9e10, memory=1e10, network=1.2e9, host=1e10, step_seconds=0.0, token_seconds=2.5e-4)

DRIVER_SECONDS, DRIVER_SECONDS_PER_ROLLOUT = 0.02, 1e-4  # the bar of benchmarks/scaling.py


@dataclass(frozen=True, slots=True)
class Work:
    """What one iteration asks for."""

    rollouts: int
    prompt_tokens: int
    response_tokens: int
    demonstrations: int  # real and contrast, of one update of the discriminator
    discriminator_updates: float  # for each of the generator
    generator_passes: int = 1  # PPO: epochs
    reference: bool = True

    @property
    def length(self) -> int:
        return self.prompt_tokens + self.response_tokens

    @property
    def tokens(self) -> int:
        return self.rollouts * self.length


def forward_flops(shape: ModelShape, *, length: int, head: bool = True) -> float:
    """Of one token in a row of ``length``: 2 N + 4 L s q.

    Two for each parameter that it is multiplied with, and 2 s q each for queries times keys and weights times values in
    every layer (Kaplan et al. 2020, arXiv 2001.08361, table 1; the masked half is computed too).
    """
    parameters = shape.matrix_parameters - (0 if head else shape.output_parameters)
    return 2.0 * parameters + 4.0 * shape.layers * length * shape.query_width


def rollout_seconds(shape: ModelShape, work: Work, rates: Rates, *, engines: int, cores: float, element: int) -> float:
    """Prompts at the rate of products; then R steps, each of products or of bytes read, and of the engine's own work.

    A step of B sequences reads the weights once and every sequence's cache: (2 N B) / F against (N e + B s c) / M, with
    s the mean length (Pope et al. 2022, arXiv 2211.05102, section 2). ``cores`` devices work on one engine (``shards``
    of a GPU engine, threads of a CPU one).
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
    """Forward and backward (1 + 2) for each pass over the batch, and one forward of the reference: 3 p + 1 passes."""
    passes = (1 + BACKWARD) * work.generator_passes + (1 if work.reference else 0)
    return work.tokens * passes * forward_flops(shape, length=work.length) / (rates.flops * devices)


def training_seconds(shape: ModelShape, rates: Rates, *, rows: float, length: int, devices: float) -> float:
    """Forward and backward of ``rows`` texts, as in the warm-ups."""
    return rows * length * (1 + BACKWARD) * forward_flops(shape, length=length) / (rates.flops * devices)


def discriminator_seconds(shape: ModelShape, work: Work, rates: Rates, *, devices: float) -> float:
    """One forward of the rollouts for their scores; forward and backward of rollouts and demonstrations an update."""
    rows = work.rollouts + (1 + BACKWARD) * work.discriminator_updates * (work.rollouts + work.demonstrations)
    return rows * work.length * forward_flops(shape, length=work.length, head=False) / (rates.flops * devices)


@dataclass(frozen=True, slots=True)
class Push:
    """Bytes over each kind of link for one push of weights."""

    size: float  # of the state dict, tied entries once
    gathered: float  # into rank 0 from the other ranks
    sent: float  # out of the learner's node
    received: float  # into each other node with rollout workers
    to_device: float  # from host memory, or a neighbour, into each GPU of an engine

    def seconds(self, rates: Rates) -> float:
        """One leg after the other: gather, over the network, onto the device."""
        return (
            self.gathered / rates.network + max(self.sent, self.received) / rates.network + self.to_device / rates.host
        )


def push(
    parameters: int, *, element: int, learner_ranks: int, split: bool, other_nodes: int, shards: int, ring: bool
) -> Push:
    """Weights of S bytes from rank 0 to every engine.

    - gather: with FSDP rank 0 lacks all parts but its own, S (n - 1) / n; with DDP nothing
    - object store: each other node fetches the one object once, and the first fetch is the learner's to send: at worst
      all of them are, S x nodes out of one link; engines on a node share the copy there
    - ring (NCCL's broadcast): every link carries S once, whatever the number of nodes
    - into each device: its shard, S / t
    """
    size = float(parameters * element)
    gathered = size * (learner_ranks - 1) / learner_ranks if split else 0.0
    sent = 0.0 if other_nodes == 0 else size * (1 if ring else other_nodes)
    return Push(size, gathered, sent, size if other_nodes else 0.0, size / shards)


def driver_seconds(work: Work) -> float:
    """The loop's own work: a constant and a part for each rollout that passes through the driver."""
    return DRIVER_SECONDS + DRIVER_SECONDS_PER_ROLLOUT * work.rollouts


def bottleneck(phases: Mapping[str, float]) -> tuple[str, float]:
    """The phase that takes longest, and its share of their sum."""
    name = max(phases, key=lambda phase: phases[phase])
    return name, phases[name] / sum(phases.values())
