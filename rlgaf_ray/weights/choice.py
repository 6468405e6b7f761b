"""Which way new weights take from the learner to the engines, decided by where the two stand."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Backend = Literal["object_store", "nccl", "ipc"]


@dataclass(frozen=True, slots=True)
class Site:
    """Where one process computes."""

    node: str
    gpus: tuple[str, ...] = ()  # what the driver calls each card, the same in every process; empty: on CPU


@dataclass(frozen=True, slots=True)
class Choice:
    backend: Backend
    reason: str

    def __str__(self) -> str:
        return f"new weights reach the engines by {self.backend}: {self.reason}"


def choose_transfer(
    asked: Literal["auto", "object_store", "nccl", "ipc"],
    *,
    learners: Sequence[Site],
    engines: Sequence[Site],
    device_transfer: bool,
    together: bool,
) -> Choice:
    """The backend that was asked for, or the fastest one that the placement allows.

    ``ipc`` opens the learner's own memory and needs every engine's GPUs to be a learner's too; ``nccl`` is a
    collective, in which no GPU may stand twice; ``object_store`` goes through the memory of the hosts and works
    everywhere.

    Args:
        learners: of each rank, the one that sends first.
        engines: of each engine, with all of its GPUs.
        device_transfer: whether the engines have ``ipc`` and ``nccl``.
        together: whether all engines take new weights at once, for these two; otherwise each between its requests.

    Raises:
        ValueError: the placement does not allow what was asked for.
    """
    obstacles = {"ipc": _obstacle_to_ipc(learners, engines), "nccl": _obstacle_to_nccl(learners[0], engines)}
    if not together:
        obstacles = dict.fromkeys(obstacles, "each engine takes weights between requests of its own")
    if not device_transfer:
        obstacles = dict.fromkeys(obstacles, "this rollout engine takes weights from memory only")
    match asked:
        case "object_store":
            return Choice("object_store", "weights.transfer asks for it")
        case "ipc" | "nccl":
            if obstacle := obstacles[asked]:
                raise ValueError(
                    f"weights.transfer={asked} is not possible here, {obstacle}: set weights.transfer=auto"
                )
            return Choice(asked, "weights.transfer asks for it")
    if not obstacles["ipc"]:
        return Choice("ipc", "every engine shares its GPU with a learner")
    if not obstacles["nccl"]:
        return Choice("nccl", "learner and engines have GPUs of their own")
    reasons = dict.fromkeys(obstacles.values())
    return Choice("object_store", "; ".join(str(reason) for reason in reasons))


def _obstacle_to_ipc(learners: Sequence[Site], engines: Sequence[Site]) -> str | None:
    if on_cpu := _on_cpu([*learners, *engines]):
        return on_cpu
    shared = {gpu for site in learners for gpu in site.gpus}
    for index, engine in enumerate(engines):
        if not shared.issuperset(engine.gpus):
            return f"rollout worker {index} has a GPU that no learner is on"
    return None


def _obstacle_to_nccl(sender: Site, engines: Sequence[Site]) -> str | None:
    if on_cpu := _on_cpu([sender, *engines]):
        return on_cpu
    members = Counter([sender.gpus[0], *(gpu for engine in engines for gpu in engine.gpus)])
    card, count = members.most_common(1)[0]
    if count == 1:
        return None
    if card == sender.gpus[0]:
        return "the learner shares its GPU with a rollout worker, and NCCL takes one process a GPU"
    return "two rollout workers share a GPU, and NCCL takes one process a GPU"


def _on_cpu(sites: Sequence[Site]) -> str | None:
    return None if all(site.gpus for site in sites) else "learner or engines compute on CPU"


def current_site(device: str) -> Site:
    """Where this process computes: all GPUs that it sees, or none if ``device`` is the CPU."""
    node = socket.gethostname()
    if device == "cpu":
        return Site(node)
    import torch

    cards = range(torch.cuda.device_count())
    return Site(node, tuple(str(torch.cuda.get_device_properties(card).uuid) for card in cards))
