"""Five disjoint parts of the reviews, the same in every run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlgaf_ray.config.task import SplitSizes
from rlgaf_ray.data.cache import content_hash
from rlgaf_ray.data.reviews import Reviews

# Not run.seed: seeds are compared on the same splits, and a judge never meets another seed's training data.
SPLIT_SEED = 20230601


@dataclass(frozen=True, slots=True, eq=False)
class Splits:
    """Row numbers of the reviews in each part (int64, shuffled)."""

    generator_warmup: np.ndarray
    demonstrations: np.ndarray
    discriminator_warmup: np.ndarray
    judge: np.ndarray
    held_out: np.ndarray
    checksum: str  # SHA-256 over part, row, label and text of every review used


def split_reviews(reviews: Reviews, sizes: SplitSizes) -> Splits:
    """Draw the parts without replacement, each half positive (an odd one has one more negative).

    Raises ``ValueError`` where the reviews of either sentiment are too few for all parts together.
    """
    requested = dict(sizes)
    pools = [np.flatnonzero(reviews.labels == label) for label in (0, 1)]
    num_positive = {name: size // 2 for name, size in requested.items()}
    asked = [sum(requested.values()) - sum(num_positive.values()), sum(num_positive.values())]
    if any(ask > len(pool) for ask, pool in zip(asked, pools, strict=True)):
        keys = ", ".join(f"task.imdb.splits.{name}={size}" for name, size in requested.items())
        raise ValueError(
            f"the splits ask for {asked[1]} positive and {asked[0]} negative reviews, "
            f"but the data has {len(pools[1])} positive and {len(pools[0])} negative: lower some of {keys}"
        )
    generator = np.random.Generator(np.random.PCG64(SPLIT_SEED))
    negative, positive = (generator.permutation(pool) for pool in pools)
    rows: dict[str, np.ndarray] = {}
    for name, size in requested.items():
        taken_positive, positive = np.split(positive, [num_positive[name]])
        taken_negative, negative = np.split(negative, [size - num_positive[name]])
        rows[name] = generator.permutation(np.concatenate([taken_positive, taken_negative]))
    checksum = content_hash(
        f"{name} {row} {reviews.labels[row]} {reviews.texts[row]}" for name, members in rows.items() for row in members
    )
    return Splits(**rows, checksum=checksum)
