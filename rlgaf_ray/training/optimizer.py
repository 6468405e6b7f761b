"""AdamW, learning-rate schedules as a function of the step alone, and optimiser state as safetensors and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import nn

Schedule = Literal["constant", "linear", "cosine"]


def build_optimizer(
    parameters: Iterable[nn.Parameter], *, learning_rate: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) with decay on matrices only: biases and norms keep their scale."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)


def schedule_factor(step: int, *, num_steps: int, num_warmup_steps: int, schedule: Schedule) -> float:
    """Multiplier of the learning rate at ``step`` (from 0): linear warm-up, then constant, or down to zero."""
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
    optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], *, learning_rate: float, max_grad_norm: float
) -> float:
    """Clip, step, clear. Returns the gradient's norm before clipping; a norm that is not finite skips the step."""
    norm = float(nn.utils.clip_grad_norm_(parameters, max_grad_norm))
    if math.isfinite(norm):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def save_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Write ``path`` (safetensors: moments) and its JSON twin (hyper-parameters)."""
    state = optimizer.state_dict()
    tensors = {
        f"{index}.{name}": tensor.contiguous()
        for index, entries in state["state"].items()
        for name, tensor in entries.items()
    }
    save_file(tensors, path)
    path.with_suffix(".json").write_text(json.dumps(state["param_groups"]))


def load_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(path).items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    groups = json.loads(path.with_suffix(".json").read_text())
    optimizer.load_state_dict({"state": state, "param_groups": groups})
