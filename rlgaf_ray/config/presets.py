"""The configs that come with the package, by name: ``imdb_positive``, ``recipes/grpo``."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def presets() -> dict[str, Path]:
    """Their files. An installed wheel has them inside the package (setup.py), a clone beside it."""
    inside = PACKAGE / "configs"
    folder = inside if inside.is_dir() else PACKAGE.parent / "configs"
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}
