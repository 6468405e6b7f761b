"""Predict the node and the GPUs of each bundle of a placement group, without a running Ray.

It reimplements Ray's placement strategies to check in advance that a plan fits. Ray makes the actual assignment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Strategy = Literal["PACK", "STRICT_PACK", "SPREAD"]
Bundle = Mapping[str, float]
EPSILON = 1e-6  # below Ray's resource resolution of 0.0001


@dataclass(frozen=True, slots=True)
class Node:
    """The resources of one node."""

    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a bundle is: its node, and the indices of its GPUs there."""

    node: int
    gpus: tuple[int, ...] = ()


@dataclass(slots=True)
class _Free:
    """The free resources of a node. A fractional request must fit on one GPU, so each GPU is tracked separately."""

    cpus: float
    gpus: list[float] = field(default_factory=list)

    def take(self, bundle: Bundle) -> tuple[int, ...] | None:
        """Allocate the bundle and return the indices of its GPUs, or return None and change nothing."""
        cpus, gpus = bundle.get("CPU", 0.0), bundle.get("GPU", 0.0)
        if cpus > self.cpus + EPSILON:
            return None
        taken: tuple[int, ...] = ()
        if gpus >= 1:
            taken = tuple(index for index, free in enumerate(self.gpus) if free >= 1 - EPSILON)[: round(gpus)]
            if len(taken) < gpus - EPSILON:
                return None
        elif gpus > 0:
            fitting = [free for free in self.gpus if free >= gpus - EPSILON]
            if not fitting:
                return None
            taken = (self.gpus.index(min(fitting)),)
        for index in taken:
            self.gpus[index] -= min(gpus, 1.0)
        self.cpus -= cpus
        return taken


def pack(bundles: Sequence[Bundle], strategy: Strategy, nodes: Sequence[Node]) -> list[int] | None:
    """Return the node index of each bundle, or None if they do not fit (see ``spots``)."""
    found = spots(bundles, strategy, nodes)
    return None if found is None else [spot.node for spot in found]


def spots(bundles: Sequence[Bundle], strategy: Strategy, nodes: Sequence[Node]) -> list[Spot] | None:
    """Return the node and the GPUs of each bundle, or None if they do not fit.

    PACK fills one node after another, the one with the most free GPUs first; STRICT_PACK puts all bundles on one node;
    SPREAD puts each bundle on the node with the fewest bundles. Bundles with the most GPUs are placed first.
    """
    if strategy == "STRICT_PACK":
        for index, node in enumerate(nodes):
            free = _free(node)
            taken = [free.take(bundle) for bundle in bundles]
            if None not in taken:
                return [Spot(index, gpus or ()) for gpus in taken]
        return None
    available = [_free(node) for node in nodes]
    held = [0] * len(nodes)  # bundles on each node

    def rank(node: int) -> tuple[float, float]:
        """Sort key: the node with the lowest value is tried first."""
        return held[node] if strategy == "SPREAD" else held[node] == 0, -sum(available[node].gpus)

    placed: dict[int, Spot] = {}
    for bundle in sorted(range(len(bundles)), key=lambda index: -bundles[index].get("GPU", 0.0)):
        for chosen in sorted(range(len(nodes)), key=rank):
            gpus = available[chosen].take(bundles[bundle])
            if gpus is not None:
                held[chosen] += 1
                placed[bundle] = Spot(chosen, gpus)
                break
        else:
            return None
    return [placed[index] for index in range(len(bundles))]


def _free(node: Node) -> _Free:
    return _Free(node.cpus, [1.0] * int(node.gpus + EPSILON))
