"""Configs shipped with the package, by name: ``imdb_positive``, ``recipes/grpo``."""

from __future__ import annotations

import difflib
import os
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def presets_folder() -> Path:
    """Return the folder of the presets: inside the package in a wheel (setup.py), next to it in a clone."""
    inside = PACKAGE / "configs"
    return inside if inside.is_dir() else PACKAGE.parent / "configs"


@cache
def presets() -> dict[str, Path]:
    """Return the file of each preset."""
    folder = presets_folder()
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def shipped_model(source: str) -> str:
    """Return the path of a model folder among the presets, such as ``scaling/shapes/8b``; else the source itself.

    A path that exists in the working directory takes precedence.
    """
    folder = presets_folder() / source
    if os.path.exists(source) or ".." in Path(source).parts or not os.path.isfile(folder / "config.json"):
        return source
    return str(folder)


def nearest(name: str) -> str:
    """Return a hint: the preset with a similar name, or the list of presets."""
    near = difflib.get_close_matches(name, presets(), n=1)
    return f"did you mean {near[0]}?" if near else f"the presets are {', '.join(presets())}"


def first_line(preset: Path) -> str:
    """Return the first line of a preset's comment, its description."""
    with preset.open("r", encoding="utf-8") as lines:
        return next(lines).removeprefix("#").strip()
