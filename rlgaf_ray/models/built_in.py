"""The built-in base model: a small GPT-2 trained on film reviews (``film_reviews/README.md``)."""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path

from rlgaf_ray.config.model import FILM_REVIEWS
from rlgaf_ray.errors import UserError

FOLDER = Path(__file__).parent / "film_reviews"
WEIGHTS = FOLDER / "model.safetensors"
SHA256 = "e3e7b81198f3531e2ac0186846d6244f06a4dab42d6547b233c3a5197a6c22b4"


def model_source(source: str | Path) -> str | Path:
    """Resolve the built-in model's name to its folder and expand ``~``; any other source is returned unchanged.

    Raises ``UserError`` if the built-in weights do not have the released checksum.
    """
    if source != FILM_REVIEWS:
        return Path(os.path.expanduser(source)) if str(source).startswith("~") else source
    _check_weights()
    return FOLDER


def absolute_source(source: str) -> str:
    """Make the path of a model's or data set's folder absolute, for another working directory; keep other sources."""
    return os.path.abspath(source) if os.path.isdir(source) else source


@cache
def _check_weights() -> None:
    found = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() if WEIGHTS.is_file() else "no file"
    if found != SHA256:
        raise UserError(
            f"model.generator={FILM_REVIEWS}: {WEIGHTS} does not have the released checksum "
            f"({found[:16]} instead of {SHA256[:16]}): install the package again"
        )
