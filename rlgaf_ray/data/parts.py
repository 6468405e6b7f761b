"""Rows dealt out to the parts, and what parts have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

import numpy as np

from rlgaf_ray.errors import UserError

# Not run.seed: seeds are compared on the same parts.
SPLIT_SEED = 20230601


class Grouped(Protocol):
    @property
    def group(self) -> str: ...


T = TypeVar("T", bound=Grouped)


def split_by_group(
    items: Sequence[T], shares: Mapping[str, float], *, max_rows: int | None = None
) -> dict[str, list[T]]:
    """Parts that share no group, so that no context or prompt of one part is known from another.

    Whole groups are shuffled with a fixed seed and assigned part by part, in the order of ``shares``, until each part
    has its share of the rows. Shares are relative to their sum. With ``max_rows`` only the first groups are used.
    Raises ``UserError`` where the groups are too few for a part.
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


def shared_groups(dealt: Sequence[Grouped], own: Mapping[str, Sequence[Grouped]]) -> dict[str, int]:
    """How many prompts of a part with rows of its own are also in another: each with the words for it."""
    known = {"the rows for training": {item.group for item in dealt}}
    found = {}
    for name, items in own.items():
        groups = {item.group for item in items}
        for other, others in known.items():
            if common := len(groups & others):
                found[f"prompts of the part {name} (of {len(groups):,}) that are also in {other}"] = common
        known[f"the part {name}"] = groups
    return found
