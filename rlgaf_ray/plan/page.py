"""Print a plan: tables of placement, memory, traffic and time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from rlgaf_ray.config.schema import Config
from rlgaf_ray.plan.estimate import Estimate, Hardware, Role
from rlgaf_ray.plan.memory import Memory
from rlgaf_ray.plan.shape import GIB, MIB, ModelShape
from rlgaf_ray.plan.speed import Rates, bottleneck
from rlgaf_ray.weights.choice import Backend

TRANSPORTS: dict[Backend, str] = {"ipc": "CUDA IPC", "nccl": "NCCL broadcast", "object_store": "object store"}
ROLES: tuple[Role, ...] = ("learner", "discriminator", "rollout")
MEMORY_ROWS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimiser moments",
    "reference": "reference and other copies",
    "activations": "activations, 16-bit copies",
    "kv_cache": "KV cache",
    "runtime": "libraries",
    "total": "total",
}


def show(console: Console, config: Config, shape: ModelShape, plan: Estimate, hardware: Hardware, rates: Rates) -> None:
    console.print(
        f"model: {shape.parameters / 1e6:,.1f} M parameters, {shape.layers} layers x {shape.width}, vocabulary "
        f"{shape.vocabulary:,}; discriminator {shape.scalar_parameters / 1e6:,.1f} M"
    )
    console.print(placement_table(plan, hardware))
    console.print(memory_table(plan))
    console.print(f"[bold]{fits(config, plan, hardware)}[/bold]")
    console.print(traffic_table(plan))
    console.print(time_table(plan))
    name, share = bottleneck(plan.phases)
    console.print(f"[bold]expected bottleneck: {name}, {share:.0%} of the total time of all phases[/bold]")
    device = "GPU" if plan.placement.device == "cuda" else "core"
    console.print(
        f"assumed rates, not measured: {rates.flops / 1e12:g} TFLOP/s and {rates.memory / 1e9:g} GB/s per {device}, "
        f"{rates.network / 1e9:g} GB/s between nodes, {rates.host / 1e9:g} GB/s from host to device"
    )


def placement_table(plan: Estimate, hardware: Hardware) -> Table:
    placement = plan.placement
    table = Table(title=f"placement {placement.kind}, bundles {placement.strategy}")
    for column in ("node", "resources", "actors"):
        table.add_column(column)
    actors_on: list[Counter[str]] = [Counter() for _ in hardware.nodes]
    for name, bundles in (
        ("learner rank", placement.learner_bundles),
        ("discriminator rank", placement.discriminator_bundles),
        ("rollout worker", placement.rollout_bundles),
    ):
        for bundle in bundles:
            actors_on[plan.nodes[bundle]][name] += 1
    for first, last in _groups(actors_on):
        node = hardware.nodes[first]
        resources = f"{node.cpus:g} CPUs, {node.gpus:g} GPUs"
        actors = ", ".join(f"{count} x {name}" for name, count in actors_on[first].items()) or "(none)"
        table.add_row(str(first) if first == last else f"{first} to {last}, each", resources, actors)
    shards = placement.tensor_parallel_size
    shares = f"each actor: {placement.cpus_per_actor:g} CPUs"
    if placement.device == "cuda":
        shares += f", {placement.gpus_per_actor:g} GPUs" + (f" (a rollout worker {shards})" if shards > 1 else "")
    else:
        shares += f"; threads: {placement.threads} per rank, {placement.rollout_threads} per rollout worker"
    table.caption = shares
    return table


def _groups(actors_on: Sequence[Counter[str]]) -> list[tuple[int, int]]:
    """Return the first and last index of each group of consecutive nodes with the same actors."""
    groups: list[tuple[int, int]] = []
    for index, each in enumerate(actors_on):
        if groups and actors_on[groups[-1][0]] == each:
            groups[-1] = (groups[-1][0], index)
        else:
            groups.append((index, index))
    return groups


def memory_table(plan: Estimate) -> Table:
    large = max(memory.total for memory in plan.memory.values()) > 8 * GIB
    unit, form = (GIB, "{:,.1f}") if large else (MIB, "{:,.0f}")
    table = Table(title=f"peak memory per actor, {'GiB' if large else 'MiB'}")
    table.add_column("")
    shard = "rollout worker" if plan.placement.tensor_parallel_size == 1 else "shard of a rollout worker"
    for name in ("learner rank", "discriminator rank", shard):
        table.add_column(name, justify="right")
    for part, name in MEMORY_ROWS.items():
        sizes = [getattr(plan.memory[role], part) for role in ROLES]
        cells = (form.format(size / unit) if size else "" for size in sizes)
        table.add_row(name, *cells, style="bold" if part == "total" else None)
    return table


def fits(config: Config, plan: Estimate, hardware: Hardware) -> str:
    """Return the memory of the fullest GPU or CPU node, whether it fits, and the size of one engine's KV cache."""
    cache = (
        f"one engine's KV cache holds {plan.kv_tokens:,.0f} tokens ({plan.kv_tokens / plan.work.length:,.0f} rollouts)"
    )
    if plan.placement.device == "cpu":
        on_node = f"{node_bytes(plan) / GIB:,.1f} GiB"
        return f"a node needs up to {on_node}, plus the weights in its object store; {cache}"
    needed, available = plan.device_bytes(), hardware.gpu_memory
    verdict = "fits"
    if needed > available:
        verdict = f"does not fit: {', or '.join(remedies(config))}, or reduce the sequence length"
    return f"a GPU needs up to {needed / GIB:,.1f} of {available / GIB:g} GiB: {verdict}; {cache}"


def remedies(config: Config) -> list[str]:
    """Return the settings that save GPU memory and that the config accepts beside its others."""
    learner, rollout = config.learner, config.rollout
    several = max(learner.num_workers, config.discriminator.num_workers) > 1
    micro = "micro_batch_size" if learner.micro_batch_tokens is None else "micro_batch_tokens"
    shared = config.cluster.placement == "colocate" or config.cluster.gpus_per_actor < 1
    possible = {
        "set rollout.sleep_level=1": shared
        and rollout.traits.sleeps
        and rollout.sleep_level == 0
        and config.schedule.mode == "sync",
        "set learner.strategy=fsdp": several and learner.strategy == "ddp" and config.model.lora.rank == 0,
        "set learner.fsdp.offload_reference=true": learner.num_workers > 1
        and learner.strategy == "fsdp"
        and not learner.fsdp.offload_reference,
        "reduce rollout.gpu_memory_utilization": rollout.traits.vllm,
        f"reduce learner.{micro}": True,
    }
    return [setting for setting, applies in possible.items() if applies]


def node_bytes(plan: Estimate) -> float:
    """Return the total memory of the actors on the fullest node."""
    placement, used = plan.placement, Counter[int]()
    roles: list[tuple[Memory, range]] = [
        (plan.memory["learner"], placement.learner_bundles),
        (plan.memory["discriminator"], placement.discriminator_bundles),
        (plan.memory["rollout"], placement.rollout_bundles),
    ]
    for memory, bundles in roles:
        for bundle in bundles:
            used[plan.nodes[bundle]] += round(memory.total)
    return max(used.values())


def traffic_table(plan: Estimate) -> Table:
    sent = plan.push
    table = Table(title=f"traffic of one weight push ({sent.size / GIB:,.2f} GiB), {TRANSPORTS[sent.backend]}")
    table.add_column("link")
    table.add_column("GiB", justify="right")
    for name, size in (
        (f"into {'each rank' if sent.backend == 'ipc' else 'rank 0'} of the learner from the others", sent.gathered),
        ("out of the learner's node", sent.sent),
        ("into each other node with rollout workers", sent.received),
        ("into each device of an engine", sent.to_device),
    ):
        table.add_row(name, f"{size / GIB:,.3f}")
    rollouts = (plan.work.rollouts + plan.work.completions) * plan.work.length * 8  # int32 ids, float32 log-probs
    table.caption = f"rollouts through the driver per iteration: {rollouts / 2**20:,.1f} MiB"
    return table


def time_table(plan: Estimate) -> Table:
    table = Table(title=f"one iteration of {plan.work.rollouts} rollouts x {plan.work.length} tokens, estimated")
    table.add_column("phase")
    table.add_column("seconds", justify="right")
    for name, seconds in plan.phases.items():
        table.add_row(name, f"{seconds:,.3f}")
    how = "rollouts overlap the other phases" if plan.overlapped else "sequential"
    total = plan.iteration_seconds
    table.add_row(f"iteration ({how})", f"{total:,.3f}", style="bold")
    table.caption = f"{plan.work.rollouts / total:,.0f} rollouts/s"
    return table
