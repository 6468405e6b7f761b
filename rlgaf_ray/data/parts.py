"""Split rows into parts by group, and find groups that parts share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

import numpy as np

from rlgaf_ray.errors import UserError

# Independent of run.seed, so that runs with different seeds use the same parts.
SPLIT_SEED = 20230601


class Grouped(Protocol):
    @property
    def group(self) -> str: ...


T = TypeVar("T", bound=Grouped)


def split_by_group(
    items: Sequence[T], shares: Mapping[str, float], *, max_rows: int | None = None
) -> dict[str, list[T]]:
    """Split items into parts that share no group, so that no context or prompt leaks from one part to another.

    Groups are shuffled with a fixed seed and assigned part by part, in the order of ``shares``, until each part has its
    share of the rows. Shares are relative to their sum. With ``max_rows`` only the first groups are used.
    Raises ``UserError`` if there are too few groups for a part.
    """
    groups: dict[str, list[T]] = {}
    for item in items:
        groups.setdefault(item.group, []).append(item)
    names = list(groups)
    order = iter(np.random.default_rng(SPLIT_SEED).permutation(len(names)))
    bounds = np.cumsum(list(shares.values())) / sum(shares.values()) * min(len(items), max_rows or len(items))
    parts: dict[str, list[T]] = {}
    count = 0
    for name, bound in zip(shares, bounds, strict=True):
        parts[name] = []
        while count + 1e-6 < bound and (row := next(order, None)) is not None:
            parts[name] += groups[names[row]]
            count += len(groups[names[row]])
        if not parts[name]:
            raise UserError(
                f"{len(names)} articles or prompts are too few for the parts {', '.join(shares)}: none is left for "
                f"{name}; give more data"
            )
    return parts


def shared_groups(common: Sequence[Grouped], own: Mapping[str, Sequence[Grouped]]) -> dict[str, int]:
    """Count the prompts that a separately given part shares with other rows, as remarks for ``RowCounts``."""
    known = {"the rows for training": {item.group for item in common}}
    found = {}
    for name, items in own.items():
        groups = {item.group for item in items}
        for other, others in known.items():
            if count := len(groups & others):
                found[f"prompts of the part {name} (of {len(groups):,}) that are also in {other}"] = count
        known[f"the part {name}"] = groups
    return found
