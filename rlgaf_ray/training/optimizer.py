"""AdamW, stateless learning rate schedules, and optimiser checkpoints as safetensors and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor

from rlgaf_ray.config.section import LearningRateSchedule
from rlgaf_ray.training.distributed import SINGLE_PROCESS, Group, full_tensor, shard_like


def build_optimizer(
    parameters: Iterable[nn.Parameter], *, learning_rate: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW:
    """Build AdamW (Loshchilov & Hutter 2019) with weight decay on matrices only, not on biases and norms."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)


def schedule_factor(step: int, *, num_steps: int, num_warmup_steps: int, schedule: LearningRateSchedule) -> float:
    """Return the learning rate multiplier at ``step`` (from 0): linear warm-up, then constant or decay to zero."""
    if step < num_warmup_steps:
        return (step + 1) / num_warmup_steps
    progress = min(1.0, (step - num_warmup_steps) / max(1, num_steps - num_warmup_steps))
    match schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - progress
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))


def optimizer_step(
    optimizer: torch.optim.Optimizer,
    parameters: Iterable[nn.Parameter],
    *,
    learning_rate: float,
    max_grad_norm: float,
    group: Group = SINGLE_PROCESS,
) -> float:
    """Sum gradients across ranks, clip them, step the optimiser and clear the gradients.

    Returns the global gradient norm before clipping. The step is skipped if it is non-finite (see ``skipped``).
    """
    parameters = list(parameters)
    group.sum_gradients(parameters)
    norm = float(full_tensor(nn.utils.clip_grad_norm_(parameters, max_grad_norm)))
    if not skipped(norm):
        for options in optimizer.param_groups:
            options["lr"] = learning_rate
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def skipped(grad_norm: float) -> float:
    """Return 1 if ``optimizer_step`` skipped the step with this norm (weights and moments unchanged), else 0."""
    return float(not math.isfinite(grad_norm))


def save_optimizer(optimizer: torch.optim.Optimizer, path: Path, group: Group = SINGLE_PROCESS) -> None:
    """Write moments to ``path`` (safetensors) and hyper-parameters to a JSON file beside it.

    All ranks take part in gathering full tensors; rank 0 writes.
    """
    state = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    for index, entries in state["state"].items():
        for name, tensor in entries.items():
            full = full_tensor(tensor)
            if group.first:
                tensors[f"{index}.{name}"] = full.cpu() if isinstance(tensor, DTensor) else full.contiguous()
    if group.first:
        save_file(tensors, path)
        path.with_suffix(".json").write_text(json.dumps(state["param_groups"]), encoding="utf-8")


def load_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Load the saved moments; options such as the weight decay stay those of ``optimizer``.

    The saving process group may have had another size or strategy. Raises ``ValueError`` for other parameter groups.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(path).items():
        index, name = key.split(".", 1)
        moment = name != "step"
        state.setdefault(int(index), {})[name] = shard_like(tensor, parameters[int(index)]) if moment else tensor
    saved = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    own = optimizer.param_groups
    options = [{name: value for name, value in group.items() if name != "params"} for group in own]
    groups = [group | now for group, now in zip(saved, options, strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
