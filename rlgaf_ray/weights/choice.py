"""Choose the weight transfer backend between learner and engines from their placement."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rlgaf_ray.errors import UserError

Backend = Literal["object_store", "nccl", "ipc"]


@dataclass(frozen=True, slots=True)
class Site:
    """The node and GPUs of one process."""

    node: str
    gpus: tuple[str, ...] = ()  # UUIDs of the GPUs, the same in every process; empty on CPU


@dataclass(frozen=True, slots=True)
class Choice:
    backend: Backend
    reason: str

    def __str__(self) -> str:
        return f"weight transfer over {self.backend}: {self.reason}"


def choose_transfer(
    requested: Literal["auto", "object_store", "nccl", "ipc"],
    *,
    learners: Sequence[Site],
    engines: Sequence[Site],
    device_transfer: bool,
    together: bool,
    copies: bool,
) -> Choice:
    """Return the requested backend, or with ``auto`` the fastest one that the placement allows.

    ``ipc`` maps the learner's memory and needs every engine GPU to be a learner GPU too. ``nccl`` is a collective
    with one process per GPU. ``object_store`` goes through host memory and always works.

    Args:
        requested: ``weights.transfer``.
        learners: site of each learner rank, the sending rank first.
        engines: site of each engine, with all of its GPUs.
        device_transfer: whether the engines support ``ipc`` and ``nccl``.
        together: whether all engines update at the same time, as ``ipc`` and ``nccl`` require; if False, each updates
            between its own requests.
        copies: whether each push sends tensors made for it, such as merged adapters. ``ipc`` then needs exactly one
            engine on each learner's GPU: torch counts one reader per shared tensor, and frees it after that one.

    Raises:
        UserError: the placement does not allow the requested backend.
    """
    obstacles = {"ipc": _obstacle_to_ipc(learners, engines, copies), "nccl": _obstacle_to_nccl(learners[0], engines)}
    if not together:
        obstacles = dict.fromkeys(obstacles, "each engine updates its weights between its own requests")
    if not device_transfer:
        obstacles = dict.fromkeys(obstacles, "this rollout engine receives weights through host memory only")
    match requested:
        case "object_store":
            return Choice("object_store", "set by weights.transfer")
        case "ipc" | "nccl":
            if obstacle := obstacles[requested]:
                raise UserError(
                    f"weights.transfer={requested} is not possible here, {obstacle}: set weights.transfer=auto"
                )
            return Choice(requested, "set by weights.transfer")
    if not obstacles["ipc"]:
        return Choice("ipc", "every engine shares its GPU with a learner")
    if not obstacles["nccl"]:
        leak = obstacles["ipc"] if _without_a_learner(learners, engines) is None else None
        return Choice("nccl", leak or "learner and engines are on separate GPUs")
    reasons = dict.fromkeys(obstacles.values())
    return Choice("object_store", "; ".join(str(reason) for reason in reasons))


def _obstacle_to_ipc(learners: Sequence[Site], engines: Sequence[Site], copies: bool) -> str | None:
    if on_cpu := _on_cpu([*learners, *engines]):
        return on_cpu
    index = _without_a_learner(learners, engines)
    if index is not None:
        return f"rollout worker {index} is on a GPU without a learner"
    num_engines = Counter(gpu for engine in engines for gpu in engine.gpus)
    for rank, site in enumerate(learners):
        if copies and (count := num_engines[site.gpus[0]]) != 1:
            return (
                f"the GPU of learner rank {rank} has {count or 'no'} rollout workers, and the copies made for a push "
                "(merged adapters, gathered shards) are freed only with exactly one"
            )
    return None


def _without_a_learner(learners: Sequence[Site], engines: Sequence[Site]) -> int | None:
    """Return the first engine with a GPU that no learner uses."""
    shared = {gpu for site in learners for gpu in site.gpus}
    return next((index for index, engine in enumerate(engines) if not shared.issuperset(engine.gpus)), None)


def _obstacle_to_nccl(sender: Site, engines: Sequence[Site]) -> str | None:
    if on_cpu := _on_cpu([sender, *engines]):
        return on_cpu
    members = Counter([sender.gpus[0], *(gpu for engine in engines for gpu in engine.gpus)])
    card, count = members.most_common(1)[0]
    if count == 1:
        return None
    if card == sender.gpus[0]:
        return "the learner shares its GPU with a rollout worker, and NCCL needs one process per GPU"
    return "two rollout workers share a GPU, and NCCL needs one process per GPU"


def _on_cpu(sites: Sequence[Site]) -> str | None:
    return None if all(site.gpus for site in sites) else "learner or engines run on CPU"


def current_site(device: str) -> Site:
    """Return this process's site: its node and all visible GPUs, or no GPUs if ``device`` is ``cpu``."""
    node = socket.gethostname()
    if device == "cpu":
        return Site(node)
    import torch

    cards = range(torch.cuda.device_count())
    return Site(node, tuple(str(torch.cuda.get_device_properties(card).uuid) for card in cards))
