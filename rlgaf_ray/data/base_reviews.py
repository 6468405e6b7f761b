"""Which texts the built-in base model has read: fingerprints of its reviews' openings.

The reviews of the task imdb need no such list: the part ``base`` of their split holds what the model has read. This is
for rows of a user's own file or data set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from rlgaf_ray.data.splits import opening
from rlgaf_ray.errors import UserError

FINGERPRINTS = Path(__file__).parent / "base_reviews.npy"  # uint64 [N], sorted


def fingerprint(text: str) -> int:
    """64 bits of the hash of a text's first words."""
    return int.from_bytes(hashlib.sha256(opening(text).encode()).digest()[:8], "big")


def refuse_base_reviews(pairs: Iterable[tuple[str, str]]) -> None:
    """Raise ``UserError`` where a prompt with its response, or the response alone, begins like a review of the base.

    A prompt may end in a word or between two words.
    """
    known = set(np.load(FINGERPRINTS, allow_pickle=False).tolist())
    rows = [
        number
        for number, (prompt, response) in enumerate(pairs, start=1)
        if not known.isdisjoint(map(fingerprint, (prompt + response, f"{prompt} {response}", response)))
    ]
    if rows:
        shown = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
        raise UserError(
            f"{len(rows)} rows ({shown}) begin like reviews that model.generator=film-reviews was trained on: "
            "remove them, or take another model"
        )
