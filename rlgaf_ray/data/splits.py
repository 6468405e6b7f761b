"""Split reviews into disjoint parts by a hash of their text, independent of file and seed.

The built-in base model was trained on the part ``base`` of the package's reviews. The part ``test`` is never used for
model selection.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

import numpy as np

from rlgaf_ray.config.task import SplitSizes, TaskSection
from rlgaf_ray.data.cache import content_hash
from rlgaf_ray.data.reviews import Reviews
from rlgaf_ray.errors import UserError

SHARES = {
    "base": 0.29,  # base warm-up of the generator and warm-up of the discriminator
    "demonstrations": 0.22,
    "judge_validation": 0.12,  # trains the judge for validation, which selects settings
    "judge_test": 0.12,  # trains the judge for the test part
    "validation": 0.084,
    "test": 0.166,
}
SALT = "rlgaf_ray reviews 2"  # changing it changes the split
OPENING_WORDS = 12
WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True, eq=False)
class Splits:
    """Row numbers of the reviews in each part (int64), ordered by the hash of their texts."""

    base: np.ndarray
    demonstrations: np.ndarray
    judge_validation: np.ndarray
    judge_test: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    checksum: str  # SHA-256 of part, label and text of every used review


def opening(text: str) -> str:
    """Return the first words of a text without case and punctuation, so that near-copies have the same opening."""
    words = []
    for match in WORD.finditer(text.casefold()):
        words.append(match.group())
        if len(words) == OPENING_WORDS:
            break
    return " ".join(words)


def position(text: str) -> float:
    """Hash the opening of a text to a number in [0, 1)."""
    digest = hashlib.sha256(f"{SALT}|{opening(text)}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def drawn_rows(count: int, task: TaskSection) -> list[int]:
    """Select the rows of ``count`` demonstrations by ``draw_seed``, ``draw_share`` and ``max_demonstrations``."""
    order = np.arange(count)
    if task.draw_seed is not None:
        order = np.random.default_rng(task.draw_seed).permutation(count)[: max(1, round(count * task.draw_share))]
    return order[: task.max_demonstrations].tolist()


def split_reviews(reviews: Reviews, sizes: SplitSizes) -> Splits:
    """Assign reviews to parts by ``position``; a part uses at most its number in ``sizes``, half of them positive.

    Raises ``UserError`` if a part has no review of a sentiment.
    """
    positions = np.fromiter((position(text) for text in reviews.texts), np.float64, len(reviews.texts))
    by_position = np.argsort(positions, kind="stable")
    bounds = np.cumsum([0.0, *SHARES.values()])
    bounds[-1] = 1.0
    rows: dict[str, np.ndarray] = {}
    for number, name in enumerate(SHARES):
        first, last = np.searchsorted(positions[by_position], bounds[number : number + 2])
        members, size = by_position[first:last], getattr(sizes, name)
        kept = np.ones(len(members), bool)
        for label, limit in ((0, None if size is None else size - size // 2), (1, None if size is None else size // 2)):
            of_label = np.flatnonzero(reviews.labels[members] == label)
            if not len(of_label):
                raise UserError(
                    f"the {len(reviews.texts)} reviews are too few: none of sentiment {label} falls into "
                    f"the part {name} ({SHARES[name]:.0%} of them, by a hash of the text): give more reviews"
                )
            kept[of_label[limit:] if limit is not None else []] = False
        rows[name] = members[kept]
    checksum = content_hash(
        f"{name} {reviews.labels[row]} {reviews.texts[row]}" for name, members in rows.items() for row in members
    )
    return Splits(**rows, checksum=checksum)
