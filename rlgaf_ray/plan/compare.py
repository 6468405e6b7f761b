"""Plan of ``rlgaf compare``: counts, seconds and memory per method, and the wall time of all trials.

On CPU a trial is one process on one core, with one trial per core at a time. ``rlgaf compare`` does not use GPUs: a GPU
plan assumes that each trial is a separate training run with the config's placement, one after another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

from rich.console import Console
from rich.table import Table

from rlgaf_ray.actors.layout import Placement
from rlgaf_ray.actors.packing import Node
from rlgaf_ray.actors.placement import plan_on
from rlgaf_ray.compare.budget import PROMPTS_AT_ONCE, Budget, budget, scoring_passes, selection_passes, sft_steps
from rlgaf_ray.compare.configs import method_config, method_of
from rlgaf_ray.compare.decoding import decodings
from rlgaf_ray.compare.shared import keys_read
from rlgaf_ray.config import Config
from rlgaf_ray.config.compare import MethodName
from rlgaf_ray.plan.estimate import Estimate, Hardware, estimate
from rlgaf_ray.plan.shape import BFLOAT16, FLOAT32, GIB, ModelShape
from rlgaf_ray.plan.speed import (
    Rates,
    Work,
    discriminator_seconds,
    rollout_seconds,
    training_seconds,
)
from rlgaf_ray.types import EVALUATION_PARTS

ONE_PROCESS = Placement(num_rollout_workers=1, cpus_per_actor=1 / 3, gpus_per_actor=0.0, threads=1, rollout_threads=1)


@dataclass(frozen=True, slots=True)
class MethodPlan:
    """Plan of one trial of a method."""

    name: MethodName
    budget: Budget
    sft_seconds: float
    train_seconds: float
    measure_seconds: float
    memory: float  # bytes on the fullest GPU, or of the trial's process on CPU

    @property
    def seconds(self) -> float:
        return self.sft_seconds + self.train_seconds + self.measure_seconds


@dataclass(frozen=True, slots=True)
class ComparisonPlan:
    methods: list[MethodPlan]
    replicates: int
    base_seconds: float  # warm-up of the base model, shared by all trials
    shared_seconds: float  # per replicate, of stages that other methods reuse, counted in each method's own seconds
    devices: float  # GPUs or cores per trial
    at_a_time: int  # concurrent trials

    @property
    def wall_seconds(self) -> float:
        trials = self.replicates * (sum(each.seconds for each in self.methods) - self.shared_seconds)
        return self.base_seconds + trials / self.at_a_time


def plan_comparison(
    config: Config, shape: ModelShape, hardware: Hardware, rates: Rates, *, bfloat16: bool
) -> ComparisonPlan:
    """Plan every method. Raises ``UserError`` if the config does not support a method or it does not fit."""
    on_gpu, settings = config.cluster.gpus_per_actor > 0, config.compare
    found: list[MethodPlan] = []
    bases: dict[str, float] = {}
    stages: dict[str, list[float]] = {}
    devices = 1.0
    for name in settings.methods:
        own = method_config(config, name, settings.first_replicate, in_one_process=not on_gpu)
        placement = plan_on(own, hardware.nodes) if on_gpu else ONE_PROCESS
        machines = hardware if on_gpu else replace(hardware, nodes=[Node(1.0)])
        plan = estimate(own, shape, placement, machines, rates, bfloat16=bfloat16)
        sft = _sft_seconds(own, name, shape, rates)
        warmup, loop = _train_seconds(own, name, shape, placement, rates, plan)
        each = MethodPlan(
            name,
            budget(own, name),
            sft_seconds=sum(sft.values()),
            train_seconds=warmup + loop,
            measure_seconds=_measure_seconds(own, name, shape, placement, rates),
            memory=plan.device_bytes() if on_gpu else _process_bytes(plan),
        )
        found.append(each)
        shared = sft if on_gpu else sft | {"".join(keys_read(own)): warmup}
        base = _base(own)
        bases[base] = _base_seconds(own, shape, rates)
        for stage, seconds in shared.items():
            stages.setdefault(base + stage, []).append(seconds)
        devices = max(devices, placement.total("GPU"))
    cores = sum(int(node.cpus) for node in hardware.nodes)
    return ComparisonPlan(
        found,
        settings.replicates,
        base_seconds=sum(bases.values()),
        shared_seconds=sum(chain.from_iterable(seconds[1:] for seconds in stages.values())),
        devices=devices,
        at_a_time=1 if on_gpu else min(settings.concurrent or max(1, cores), len(found) * settings.replicates),
    )


def _length(config: Config) -> int:
    return config.task.prompt_tokens + config.task.response_tokens


def _base(config: Config) -> str:
    """Return what the base warm-up depends on."""
    own = {"max_demonstrations", "draw_seed", "draw_share"}
    return config.base_warmup.model_dump_json() + config.task.model_dump_json(exclude=own)


def _base_seconds(config: Config, shape: ModelShape, rates: Rates) -> float:
    warmup = config.base_warmup
    rows, length = (warmup.steps or 0) * warmup.batch_size, _length(config)
    if config.task.traits.packed:
        length = warmup.block_tokens
    return training_seconds(shape, rates, rows=rows, length=length, devices=config.warmup.num_workers)


def _sft_seconds(config: Config, name: MethodName, shape: ModelShape, rates: Rates) -> dict[str, float]:
    """Return the seconds of SFT by settings, one for each step count that the method tries.

    The contrastive term also reads each demonstration with other prompts.
    """
    settings, found = config.warmup.sft, {}
    prompts = 1 + (settings.contrastive_prompts if settings.contrastive_weight > 0 else 0)
    method = method_of(config, name)
    for steps, trained in sft_steps(config, name).items():
        rows = trained * settings.batch_size * prompts
        key = settings.model_copy(update={"steps": steps}).model_dump_json() + str(method.answering.guided)
        found[key] = training_seconds(
            shape, rates, rows=rows, length=_length(config), devices=config.warmup.num_workers
        )
    return found


def _train_seconds(
    config: Config, name: MethodName, shape: ModelShape, placement: Placement, rates: Rates, plan: Estimate
) -> tuple[float, float]:
    """Return the seconds of the discriminator's warm-up and of the loop."""
    method = method_of(config, name)
    if not method.scores:
        return 0.0, 0.0
    share = config.discriminator_warmup_rollouts / config.rollout.batch_size
    once, never = (
        discriminator_seconds(
            shape,
            replace(plan.work, discriminator_updates=updates),
            rates,
            devices=placement.num_discriminators * (1 if placement.device == "cuda" else placement.threads),
        )
        for updates in (1.0, 0.0)
    )
    warmup = config.discriminator_warmup_updates * share * (plan.phases["rollout"] + once - never)
    more_scoring = (scoring_passes(config, name) - 1) * never
    loop = config.run.iterations * (plan.iteration_seconds + more_scoring) if method.trains == "generator" else 0.0
    return warmup, loop


def _measure_seconds(config: Config, name: MethodName, shape: ModelShape, placement: Placement, rates: Rates) -> float:
    """Return the seconds to measure one method on ``evaluation.num_prompts`` prompts of each part."""
    method = method_of(config, name)
    candidates = method.answering.candidates
    per_prompt = config.compare.samples * candidates
    total = (config.compare.num_prompts or config.evaluation.num_prompts) * per_prompt
    batch = min(total, PROMPTS_AT_ONCE * per_prompt)
    work = Work(batch, config.task.prompt_tokens, config.task.response_tokens, 0, 0.0)
    on_gpu = placement.device == "cuda"
    seconds = rollout_seconds(
        shape,
        work,
        rates,
        engines=placement.num_rollout_workers,
        cores=placement.tensor_parallel_size if on_gpu else placement.rollout_threads,
        element=BFLOAT16 if config.model.dtype == "bfloat16" else FLOAT32,
    )
    if method.answering.guided:
        seconds *= 2
    if candidates > 1:
        devices = placement.num_discriminators * (1 if on_gpu else placement.threads)
        seconds += selection_passes(config, name) * discriminator_seconds(shape, work, rates, devices=devices)
    parts = len(method.options(config)) + len(EVALUATION_PARTS) - 1  # all options on the validation part
    return parts * len(decodings(config.compare)) * total / batch * seconds


def _process_bytes(plan: Estimate) -> float:
    """Return the memory of all roles in one process, which loads its libraries once."""
    memory = plan.memory.values()
    return sum(each.total - each.runtime for each in memory) + max(each.runtime for each in memory)


def show_comparison(console: Console, config: Config, plan: ComparisonPlan, hardware: Hardware) -> None:
    on_gpu = config.cluster.gpus_per_actor > 0
    device = "GPU" if on_gpu else "core"
    table = Table(title=f"comparison: one of {plan.replicates} replicates of each method, estimated")
    heads = ("rollouts", "generator steps", "D updates", "passes per answer", f"{device} s", "GiB")
    table.add_column("method", no_wrap=True)  # a name to copy into compare.methods
    for head in heads:
        table.add_column(head, justify="right", overflow="fold")
    for each in plan.methods:
        counts = each.budget
        table.add_row(
            each.name,
            f"{counts.rollouts:,}",
            f"{counts.generator_steps:,}",
            f"{counts.discriminator_updates:,}",
            f"{counts.passes:,}",
            f"{each.seconds * plan.devices:,.0f}",
            f"{each.memory / GIB:,.1f}",
        )
    console.print(table)
    for sentence in sentences(config, plan, hardware):
        console.print(sentence, highlight=False)


def sentences(config: Config, plan: ComparisonPlan, hardware: Hardware) -> Sequence[str]:
    """Return the lines under the table: wall time, memory and assumptions."""
    on_gpu = config.cluster.gpus_per_actor > 0
    most = max(plan.methods, key=lambda each: each.memory)
    trials = len(plan.methods) * plan.replicates
    if on_gpu:
        fits = "fits" if most.memory <= hardware.gpu_memory else "does not fit"
        place = f"one after another on {plan.devices:g} GPUs, each an rlgaf train run with the method's keys"
        memory = f"a GPU needs up to {most.memory / GIB:,.1f} of {hardware.gpu_memory / GIB:g} GiB: {fits}"
    else:
        place = f"{plan.at_a_time} in parallel, one core each"
        memory = f"parallel trials need up to {plan.at_a_time * most.memory / GIB:,.1f} GiB"
    prompts = config.compare.num_prompts
    asked = f"evaluation.num_prompts={config.evaluation.num_prompts}" if prompts is None else str(prompts)
    more = "" if prompts else "; parts with more prompts take longer in proportion, since all are answered"
    found = [
        f"{trials} trials, {place}: {duration(plan.wall_seconds)} of wall time including warm-ups; {memory}",
        f"measurements: {len(decodings(config.compare))} decodings x {config.compare.samples} answers to "
        f"{asked} prompts of each of {len(EVALUATION_PARTS)} parts, and of the validation part for each further "
        f"setting that a method tries{more}",
    ]
    if config.warmup.sft.steps == "auto":
        found.append(f"warmup.sft.steps=auto counts as warmup.sft.max_steps={config.warmup.sft.max_steps}")
    return found


def duration(seconds: float) -> str:
    """Format hours, or minutes below one hour."""
    minutes = math.ceil(seconds / 60)
    if minutes < 60:
        return f"{minutes} minute{'s' if minutes > 1 else ''}"
    return f"{seconds / 3600:,.1f} hours"
