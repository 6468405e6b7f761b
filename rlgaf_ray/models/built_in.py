"""The base model that comes with the package: a small GPT-2 of film reviews (``film_reviews/README.md``)."""

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
    """The folder of the built-in model for its name; any other source as it is, its ``~`` expanded.

    Raises ``UserError`` where the weights are not those that the package was released with.
    """
    if source != FILM_REVIEWS:
        return Path(os.path.expanduser(source)) if str(source).startswith("~") else source
    _check_weights()
    return FOLDER


@cache
def _check_weights() -> None:
    found = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() if WEIGHTS.is_file() else "no file"
    if found != SHA256:
        raise UserError(
            f"model.generator={FILM_REVIEWS}: {WEIGHTS} does not have the released checksum "
            f"({found[:16]} instead of {SHA256[:16]}): install the package again"
        )
