"""``rlgaf plan``: estimate the requirements of a config, without starting Ray or loading weights."""

from __future__ import annotations

import os

import torch
from rich.console import Console

from rlgaf_ray.actors.packing import Node
from rlgaf_ray.actors.placement import plan_on
from rlgaf_ray.config.schema import Config
from rlgaf_ray.models.folder import check_model_source
from rlgaf_ray.plan.compare import plan_comparison, show_comparison
from rlgaf_ray.plan.estimate import Hardware, estimate
from rlgaf_ray.plan.model import generator_shape
from rlgaf_ray.plan.page import show
from rlgaf_ray.plan.shape import GIB
from rlgaf_ray.plan.speed import ASSUMED_CORE, ASSUMED_GPU
from rlgaf_ray.training.precision import resolve_precision


def plan(
    config: Config,
    *,
    nodes: int,
    gpus_per_node: int | None,
    gpu_memory: float,
    cpus_per_node: int | None,
    console: Console | None = None,
) -> None:
    """Print the plan, and that of ``rlgaf compare`` if the config has a ``compare`` section.

    Defaults: this machine's cores, and eight GPUs if the config uses GPUs.
    Raises ``UserError`` if the model is not supported or the placement does not fit on the machines.
    """
    on_gpu = config.cluster.gpus_per_actor > 0
    cpus = cpus_per_node or os.cpu_count() or 1
    gpus = (8 if on_gpu else 0) if gpus_per_node is None else gpus_per_node
    hardware = Hardware([Node(float(cpus), float(gpus))] * nodes, gpu_memory * GIB)
    placement = plan_on(config, hardware.nodes)
    check_model_source(config.model.generator, allow_pickle=True)  # only its config.json is read
    shape = generator_shape(config)
    rates, bfloat16 = ASSUMED_GPU if on_gpu else ASSUMED_CORE, learns_in_bfloat16(config)
    console = console or Console()
    found = estimate(config, shape, placement, hardware, rates, bfloat16=bfloat16)
    show(console, config, shape, found, hardware, rates)
    if "compare" in config.model_fields_set:
        comparison = plan_comparison(config, shape, hardware, rates, bfloat16=bfloat16)
        show_comparison(console, config, comparison, hardware)


def learns_in_bfloat16(config: Config) -> bool:
    """Whether the learner uses bfloat16. ``auto`` means yes on GPUs, which this machine may lack; on CPU ask torch."""
    if config.learner.precision == "auto" and config.cluster.gpus_per_actor > 0:
        return True
    return resolve_precision(config.learner.precision, torch.device("cpu")) == torch.bfloat16
