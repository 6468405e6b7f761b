"""Configs shipped with the package, by name: ``imdb_positive``, ``recipes/grpo``."""

from __future__ import annotations

import difflib
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


@cache
def presets() -> dict[str, Path]:
    """Return the file of each preset: inside the package in a wheel (setup.py), next to it in a clone."""
    inside = PACKAGE / "configs"
    folder = inside if inside.is_dir() else PACKAGE.parent / "configs"
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def nearest(name: str) -> str:
    """Return a hint: the preset with a similar name, or the list of presets."""
    near = difflib.get_close_matches(name, presets(), n=1)
    return f"did you mean {near[0]}?" if near else f"the presets are {', '.join(presets())}"


def first_line(preset: Path) -> str:
    """Return the first line of a preset's comment, its description."""
    with preset.open("r", encoding="utf-8") as lines:
        return next(lines).removeprefix("#").strip()
