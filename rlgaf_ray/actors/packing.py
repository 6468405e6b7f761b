"""Predict the node of each bundle of a placement group, without a running Ray.

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


@dataclass(slots=True)
class _Free:
    """The free resources of a node. A fractional request must fit on one GPU, so each GPU is tracked separately."""

    cpus: float
    gpus: list[float] = field(default_factory=list)

    def take(self, bundle: Bundle) -> bool:
        """Allocate the bundle and return True, or return False and change nothing."""
        cpus, gpus = bundle.get("CPU", 0.0), bundle.get("GPU", 0.0)
        if cpus > self.cpus + EPSILON:
            return False
        if gpus < 1:
            fitting = [free for free in self.gpus if free >= gpus - EPSILON]
            if gpus > 0 and not fitting:
                return False
            if gpus > 0:
                self.gpus[self.gpus.index(min(fitting))] -= gpus
        else:
            unused = [index for index, free in enumerate(self.gpus) if free >= 1 - EPSILON]
            if len(unused) < gpus - EPSILON:
                return False
            for index in unused[: round(gpus)]:
                self.gpus[index] = 0.0
        self.cpus -= cpus
        return True


def pack(bundles: Sequence[Bundle], strategy: Strategy, nodes: Sequence[Node]) -> list[int] | None:
    """Return the node index of each bundle, or None if they do not fit.

    PACK fills one node after another, the one with the most free GPUs first; STRICT_PACK puts all bundles on one node;
    SPREAD puts each bundle on the node with the fewest bundles. Bundles with the most GPUs are placed first.
    """
    if strategy == "STRICT_PACK":
        for index, node in enumerate(nodes):
            free = _free(node)
            if all(free.take(bundle) for bundle in bundles):
                return [index] * len(bundles)
        return None
    available = [_free(node) for node in nodes]
    held = [0] * len(nodes)  # bundles on each node

    def rank(node: int) -> tuple[float, float]:
        """Sort key: the node with the lowest value is tried first."""
        return held[node] if strategy == "SPREAD" else held[node] == 0, -sum(available[node].gpus)

    placed: dict[int, int] = {}
    for bundle in sorted(range(len(bundles)), key=lambda index: -bundles[index].get("GPU", 0.0)):
        by_rank = sorted(range(len(nodes)), key=rank)
        chosen = next((node for node in by_rank if available[node].take(bundles[bundle])), None)
        if chosen is None:
            return None
        held[chosen] += 1
        placed[bundle] = chosen
    return [placed[index] for index in range(len(bundles))]


def _free(node: Node) -> _Free:
    return _Free(node.cpus, [1.0] * int(node.gpus + EPSILON))
