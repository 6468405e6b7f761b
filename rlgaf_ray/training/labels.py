"""Shuffled labels as a control: the discriminator sees the same texts with random real/fake labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlgaf_ray.data.lengths import Response


def shuffled(
    *kinds: Sequence[Response], paired: bool, generator: np.random.Generator
) -> tuple[Sequence[Response], ...]:
    """Shuffle all responses and split them into kinds of the original sizes.

    Random labels as in Zhang et al. 2017 (arXiv 1611.03530, section 2.1).

    ``paired``: shuffle only among the responses of row i, because a paired loss compares responses to one prompt.
    Later kinds may have several blocks with as many rows as the first.
    """
    sizes = [len(kind) for kind in kinds]
    items = [item for kind in kinds for item in kind]
    rows = np.arange(len(items)).reshape(-1, sizes[0] if paired else 1)
    order = generator.permuted(rows, axis=0).flatten()
    ends = np.cumsum(sizes)
    return tuple([items[row] for row in part] for part in np.split(order, ends[:-1]))
