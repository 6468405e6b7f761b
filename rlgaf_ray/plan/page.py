"""A plan as a person reads it: tables of where, how much, over which link, how long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from rlgaf_ray.plan.estimate import GIB, MIB, Estimate, Hardware, Role
from rlgaf_ray.plan.memory import Memory
from rlgaf_ray.plan.shape import ModelShape
from rlgaf_ray.plan.speed import Rates, bottleneck

ROLES: tuple[Role, ...] = ("learner", "discriminator", "rollout")
MEMORY_ROWS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimiser's moments",
    "reference": "reference and other copies",
    "activations": "activations, 16-bit copies",
    "kv_cache": "KV cache",
    "runtime": "libraries",
    "total": "total",
}


def show(console: Console, shape: ModelShape, plan: Estimate, hardware: Hardware, rates: Rates) -> None:
    console.print(
        f"model: {shape.parameters / 1e6:,.1f} M parameters, {shape.layers} layers x {shape.width}, vocabulary "
        f"{shape.vocabulary:,}; discriminator {shape.scalar_parameters / 1e6:,.1f} M"
    )
    console.print(placement_table(plan, hardware))
    console.print(memory_table(plan))
    console.print(f"[bold]{fits(plan, hardware)}[/bold]")
    console.print(traffic_table(plan))
    console.print(time_table(plan))
    name, share = bottleneck(plan.phases)
    console.print(f"[bold]expected bottleneck: {name}, {share:.0%} of the phases' sum[/bold]")
    device = "GPU" if plan.placement.device == "cuda" else "core"
    console.print(
        f"assumed, not measured here: {rates.flops / 1e12:g} TFLOP/s and {rates.memory / 1e9:g} GB/s a {device}, "
        f"{rates.network / 1e9:g} GB/s between nodes, {rates.host / 1e9:g} GB/s onto a device"
    )


def placement_table(plan: Estimate, hardware: Hardware) -> Table:
    placement = plan.placement
    table = Table(title=f"placement {placement.kind}, bundles {placement.strategy}")
    for column in ("node", "has", "actors"):
        table.add_column(column)
    lodgers: list[Counter[str]] = [Counter() for _ in hardware.nodes]
    for name, bundles in (
        ("learner rank", placement.learner_bundles),
        ("discriminator rank", placement.discriminator_bundles),
        ("rollout worker", placement.rollout_bundles),
    ):
        for bundle in bundles:
            lodgers[plan.nodes[bundle]][name] += 1
    for first, last in _runs(lodgers):
        node = hardware.nodes[first]
        has = f"{node.cpus:g} CPUs, {node.gpus:g} GPUs"
        actors = ", ".join(f"{count} x {name}" for name, count in lodgers[first].items()) or "(none)"
        table.add_row(str(first) if first == last else f"{first} to {last}, each", has, actors)
    shards = placement.tensor_parallel_size
    shares = f"each actor: {placement.cpus_per_actor:g} CPUs"
    if placement.device == "cuda":
        shares += f", {placement.gpus_per_actor:g} GPUs" + (f" (a rollout worker {shards})" if shards > 1 else "")
    else:
        shares += f"; threads: {placement.threads} a rank, {placement.rollout_threads} a rollout worker"
    table.caption = shares
    return table


def _runs(lodgers: Sequence[Counter[str]]) -> list[tuple[int, int]]:
    """First and last of each stretch of nodes with the same lodgers."""
    runs: list[tuple[int, int]] = []
    for index, each in enumerate(lodgers):
        if runs and lodgers[runs[-1][0]] == each:
            runs[-1] = (runs[-1][0], index)
        else:
            runs.append((index, index))
    return runs


def memory_table(plan: Estimate) -> Table:
    large = max(memory.total for memory in plan.memory.values()) > 8 * GIB
    unit, form = (GIB, "{:,.1f}") if large else (MIB, "{:,.0f}")
    table = Table(title=f"memory of one actor at its peak, {'GiB' if large else 'MiB'}")
    table.add_column("")
    shard = "rollout worker" if plan.placement.tensor_parallel_size == 1 else "shard of a rollout worker"
    for name in ("learner rank", "discriminator rank", shard):
        table.add_column(name, justify="right")
    for part, name in MEMORY_ROWS.items():
        sizes = [getattr(plan.memory[role], part) for role in ROLES]
        cells = (form.format(size / unit) if size else "" for size in sizes)
        table.add_row(name, *cells, style="bold" if part == "total" else None)
    return table


def fits(plan: Estimate, hardware: Hardware) -> str:
    """Whether the fullest GPU, or node of CPUs, holds its actors; and what one engine's cache holds."""
    cache = f"one engine's cache holds {plan.kv_tokens:,.0f} tokens ({plan.kv_tokens / plan.work.length:,.0f} rollouts)"
    if plan.placement.device == "cpu":
        on_node = f"{node_bytes(plan) / GIB:,.1f} GiB"
        return f"a node needs up to {on_node}, and room for the weights in its object store; {cache}"
    needed, there = plan.device_bytes(), hardware.gpu_memory
    verdict = "fits"
    if needed > there:
        verdict = "does not fit: split the learner (fsdp), shorten, or take smaller micro-batches"
    return f"a GPU needs up to {needed / GIB:,.1f} of {there / GIB:g} GiB: {verdict}; {cache}"


def node_bytes(plan: Estimate) -> float:
    """What the actors of the fullest node hold together."""
    placement, held = plan.placement, Counter[int]()
    roles: list[tuple[Memory, range]] = [
        (plan.memory["learner"], placement.learner_bundles),
        (plan.memory["discriminator"], placement.discriminator_bundles),
        (plan.memory["rollout"], placement.rollout_bundles),
    ]
    for memory, bundles in roles:
        for bundle in bundles:
            held[plan.nodes[bundle]] += round(memory.total)
    return max(held.values())


def traffic_table(plan: Estimate) -> Table:
    sent, way = plan.push, "NCCL broadcast" if plan.ring else "object store"
    table = Table(title=f"traffic of one push of weights ({sent.size / GIB:,.2f} GiB), {way}")
    table.add_column("link")
    table.add_column("GiB", justify="right")
    for name, size in (
        ("into the learner's rank 0 from the other ranks", sent.gathered),
        ("out of the learner's node", sent.sent),
        ("into each other node with rollout workers", sent.received),
        ("into each device of an engine", sent.to_device),
    ):
        table.add_row(name, f"{size / GIB:,.3f}")
    rollouts = plan.work.rollouts * plan.work.length * 8  # int32 ids, float32 log-probs
    table.caption = f"rollouts of an iteration, through the driver: {rollouts / 2**20:,.1f} MiB"
    return table


def time_table(plan: Estimate) -> Table:
    table = Table(title=f"one iteration of {plan.work.rollouts} rollouts x {plan.work.length} tokens, estimated")
    table.add_column("phase")
    table.add_column("seconds", justify="right")
    for name, seconds in plan.phases.items():
        table.add_row(name, f"{seconds:,.3f}")
    how = "rollouts beside the rest" if plan.overlapped else "one after the other"
    total = plan.iteration_seconds
    table.add_row(f"iteration ({how})", f"{total:,.3f}", style="bold")
    table.caption = f"{plan.work.rollouts / total:,.0f} rollouts/s"
    return table
