"""Contamination check: fingerprints of the reviews that the built-in base model was trained on.

It applies to rows of a user's file or dataset. The task imdb does not need it: its base model was trained on the part
``base`` only, which is disjoint from the other parts.
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
    """Return 64 bits of the SHA-256 of a text's opening (``splits.opening``)."""
    return int.from_bytes(hashlib.sha256(opening(text).encode()).digest()[:8], "big")


def refuse_base_reviews(pairs: Iterable[tuple[str, str]]) -> None:
    """Raise ``UserError`` if a prompt with its response, or a response alone, begins like a training review.

    Prompt and response are joined with and without a space, since a prompt may end within a word.
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
            "remove them, or choose another model"
        )
