"""One rank of a learner's or discriminator's group, as a process, and what it is asked to do: used by test_groups."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import torch
from torch.distributed import TCPStore, destroy_process_group

from rlgaf_ray.config import load_config
from rlgaf_ray.models.generator import load_generator
from rlgaf_ray.models.scalar import ScalarModel
from rlgaf_ray.training import learner as learner_module
from rlgaf_ray.training import policy as policy_module
from rlgaf_ray.training.distributed import SINGLE_PROCESS, Group, gather_state_dict, join_group
from rlgaf_ray.training.learner import Learner
from rlgaf_ray.training.neural_discriminator import NeuralDiscriminator
from rlgaf_ray.types import Demonstration, Rollout, ScoredRollout, TextBlocks
from rlgaf_ray.weights.state import split_state, to_tensors
from tests.patience import HANGS_AFTER

VOCABULARY = 64
SMALL = [
    "rollout.batch_size=12",
    "rollout.samples_per_prompt=4",
    "rollout.stop_at_end_of_text=true",
    "learner.precision=float32",
    "generator.learning_rate_schedule=constant",
    "generator.ppo.critic_warmup_iterations=0",
    "discriminator.contrast=labels",
    "discriminator.contrast_weight=1.3",
    "discriminator.dropout=0",  # its draws depend on the rank
]
UNIT_RATES = ["generator.learning_rate=1", "generator.ppo.value_learning_rate=1", "discriminator.learning_rate=1"]


@dataclass(frozen=True)
class Job:
    """So many updates of a network, by a group or alone."""

    name: str
    role: str = "learner"
    strategy: Literal["ddp", "fsdp"] = "ddp"
    overrides: tuple[str, ...] = ()
    steps: int = 1
    start: int = 0  # number of the first step
    exact: bool = False  # float64 and plain gradient descent: the weights' change is the gradient
    load: str | None = None  # a job whose end is gone on from
    save: bool = False


@contextmanager
def in_float64() -> Iterator[None]:
    load = ScalarModel.load
    with (
        patch.object(policy_module, "load_generator", partial(load_generator, dtype="float64")),
        patch.object(ScalarModel, "load", partial(load, dtype="float64")),
    ):
        yield


def rollouts() -> list[Rollout]:
    """Prompts and responses of many lengths."""
    generator = np.random.default_rng(5)
    return [
        Rollout(
            prompt_id=index // 4,
            prompt_ids=np.arange(2 + index // 4, dtype=np.int32) + 3,
            response_ids=generator.integers(1, VOCABULARY, 1 + (index * 5) % 9).astype(np.int32),
            behaviour_logprobs=np.full(1 + (index * 5) % 9, -4.0, np.float32),
            finish_reason="length",
            policy_version=0,
        )
        for index in range(12)
    ]


def scored(algorithm: str) -> list[ScoredRollout]:
    generator = np.random.default_rng(6)
    result = []
    for rollout in rollouts():
        parts = generator.normal(size=len(rollout.response_ids)).astype(np.float32)
        item = ScoredRollout(rollout, float(parts.sum()), 0, float(parts.sum()), parts)
        result.append(replace(item, action_values=parts) if algorithm == "seqgan" else item)
    return result


def demonstrations(seed: int, count: int) -> list[Demonstration]:
    generator = np.random.default_rng(seed)
    return [
        Demonstration(
            np.arange(3, dtype=np.int32) + 3,
            generator.integers(1, VOCABULARY, int(generator.integers(1, 9))).astype(np.int32),
        )
        for _ in range(count)
    ]


def sgd(model: torch.nn.Module) -> Any:
    """In place of AdamW."""
    return torch.optim.SGD(model.parameters(), lr=1.0)


def run(job: Job, group: Group, folder: Path) -> dict[str, np.ndarray]:
    """The weights before and after the job's updates, whole, and its losses."""
    config = load_config(None, [*SMALL, *job.overrides, *(UNIT_RATES if job.exact else [])])
    with in_float64() if job.exact else nullcontext():
        role: Learner | NeuralDiscriminator
        if job.role == "learner":
            role = Learner(folder / "model", config, pad_token_id=0, group=group, base_folder=folder / "base")
        else:
            role = NeuralDiscriminator(folder / "model", config, pad_token_id=0, group=group)
    if isinstance(role, Learner):
        beside = role.algorithm.networks()
        networks = {"policy": role.policy.model} | {name: each.model.network for name, each in beside.items()}
    else:
        networks = {"discriminator": role.model.network}
    if job.exact and isinstance(role, Learner):
        role.policy.optimizer = sgd(role.policy.model)
        for each in role.algorithm.networks().values():
            each.optimizer = sgd(each.model)
    elif job.exact and isinstance(role, NeuralDiscriminator):
        role.optimizer = sgd(role.model)
    saved = folder / f"{job.load}-{job.role}"
    if job.load and isinstance(role, Learner):
        role.load(saved)
    elif job.load and isinstance(role, NeuralDiscriminator):
        role.load(saved, version=job.start)
    found: dict[str, np.ndarray] = {}

    def record(when: str) -> None:
        for name, network in networks.items():
            for entry, tensor in (gather_state_dict(network, group) or {}).items():
                found[f"{when} {name}.{entry}"] = tensor.detach().numpy().copy()

    record("before")
    losses = []
    for step in range(job.start, job.start + job.steps):
        if isinstance(role, Learner):
            blocks = TextBlocks(np.arange(30, dtype=np.int32).reshape(3, 10) + 1, np.arange(30).reshape(3, 10) % 10 > 2)
            ptx = config.generator.ppo.pretraining_coefficient > 0
            items = scored(config.generator.algorithm)
            metrics = role.update(items, iteration=step, text=blocks if ptx else None)
            assert metrics["generator/non_finite"] == 0
            losses.append(metrics.get("generator/loss", 0.0))
        else:
            metrics = role.update(demonstrations(1, 12), rollouts(), demonstrations(2, 12))
            losses.append(metrics["discriminator/loss"])
    record("after")
    found["losses"] = np.array(losses)
    found["metrics"] = np.array([metrics[name] for name in sorted(metrics)])
    if isinstance(role, Learner):
        found["nll"] = np.array([role.mean_nll(rollouts(), model=model) for model in ("policy", "reference")])
        small = partial(split_state, max_bytes=2000)
        with patch.object(learner_module, "split_state", lambda network, max_bytes: small(network)):
            pushed = [role.weights_part(7, part) for part in range(role.num_parts())]
        assert len(pushed) > 5
        if group.first:
            for update in pushed:
                assert update is not None and (update.policy_version, update.num_parts) == (7, len(pushed))
                found |= {f"pushed policy.{name}": tensor.numpy() for name, tensor in to_tensors(update).items()}
        else:
            assert pushed == [None] * len(pushed)
    else:
        found["scores"], _ = role.token_scores([*rollouts(), *demonstrations(3, 5)])
    if job.save:
        (folder / f"{job.name}-{job.role}").mkdir(exist_ok=True)
        role.save(folder / f"{job.name}-{job.role}")
    return found


def rank(number: int, size: int, port: int, jobs: list[Job], folder: Path) -> None:
    """The whole life of one process: what rank 0 finds it writes, job by job."""
    torch.set_num_threads(1)
    store = TCPStore("127.0.0.1", port, size, is_master=False)
    member = join_group(store, rank=number, size=size, strategy="ddp", device=torch.device("cpu"), timeout=HANGS_AFTER)
    for job in jobs:
        found = run(job, replace(member, strategy=job.strategy), folder)
        if member.first:
            np.savez(folder / f"{job.name}-{size}.npz", allow_pickle=False, **found)
    destroy_process_group()


def alone(job: Job, folder: Path) -> dict[str, np.ndarray]:
    """The same in this process, in the plainest way: all rows in one pass, all logits at once."""
    plain = tuple(key for key in job.overrides if not key.startswith("learner."))
    return run(replace(job, strategy="ddp", overrides=plain, save=False), SINGLE_PROCESS, folder)
