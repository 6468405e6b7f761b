"""Which node each bundle of a placement group lands on: Ray's strategies, forecast without Ray.

Ray sorts out the rest at run time; this forecast says beforehand whether a plan fits, and shows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Strategy = Literal["PACK", "STRICT_PACK", "SPREAD"]
Bundle = Mapping[str, float]
EPSILON = 1e-6  # Ray counts in steps of 0.0001


@dataclass(frozen=True, slots=True)
class Node:
    """What one machine offers."""

    cpus: float
    gpus: float = 0.0


@dataclass(slots=True)
class _Room:
    """What is left of a node. A fraction of a GPU comes from one GPU, so each is counted by itself."""

    cpus: float
    gpus: list[float] = field(default_factory=list)

    def take(self, bundle: Bundle) -> bool:
        """Take the bundle's share where there is one, else leave all as it is."""
        cpus, gpus = bundle.get("CPU", 0.0), bundle.get("GPU", 0.0)
        if cpus > self.cpus + EPSILON:
            return False
        if gpus < 1:
            holds = [left for left in self.gpus if left >= gpus - EPSILON]
            if gpus > 0 and not holds:
                return False
            if gpus > 0:
                self.gpus[self.gpus.index(min(holds))] -= gpus
        else:
            whole = [index for index, left in enumerate(self.gpus) if left >= 1 - EPSILON]
            if len(whole) < gpus - EPSILON:
                return False
            for index in whole[: round(gpus)]:
                self.gpus[index] = 0.0
        self.cpus -= cpus
        return True


def pack(bundles: Sequence[Bundle], strategy: Strategy, nodes: Sequence[Node]) -> list[int] | None:
    """The index of the node of each bundle; None where they do not fit.

    PACK fills one node after another, the emptiest first; STRICT_PACK takes one node for all; SPREAD takes for each
    bundle the node with the fewest of them. Bundles with the most GPUs are placed first.
    """
    if strategy == "STRICT_PACK":
        for index, node in enumerate(nodes):
            room = _room(node)
            if all(room.take(bundle) for bundle in bundles):
                return [index] * len(bundles)
        return None
    rooms = [_room(node) for node in nodes]
    held = [0] * len(nodes)  # bundles on each node

    def rank(node: int) -> tuple[float, float]:
        """Of the nodes, the lowest is tried first."""
        return held[node] if strategy == "SPREAD" else held[node] == 0, -sum(rooms[node].gpus)

    placed: dict[int, int] = {}
    for bundle in sorted(range(len(bundles)), key=lambda index: -bundles[index].get("GPU", 0.0)):
        chosen = next((node for node in sorted(range(len(nodes)), key=rank) if rooms[node].take(bundles[bundle])), None)
        if chosen is None:
            return None
        held[chosen] += 1
        placed[bundle] = chosen
    return [placed[index] for index in range(len(bundles))]


def _room(node: Node) -> _Room:
    return _Room(node.cpus, [1.0] * int(node.gpus + EPSILON))
