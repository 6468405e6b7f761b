"""The names that ``import rlgaf_ray`` gives, and the wheel they come in."""

from __future__ import annotations

import ast
import inspect
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import rlgaf_ray as rl
from rlgaf_ray.config.presets import presets

ROOT = Path(__file__).parents[2]
IMPORTED = """
import sys
import rlgaf_ray as rl
config = rl.load_config("imdb_positive", ["run.seed=3"], small=True)
print(rl.__file__, config.run.seed, *{"torch", "ray", "transformers", "numpy"} & set(sys.modules))
"""


def test_public_names_are_there_and_typed() -> None:
    stub = ast.parse((ROOT / "rlgaf_ray" / "__init__.pyi").read_text())
    typed = {alias.asname for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed == set(rl.__all__) <= set(dir(rl))
    assert all(inspect.getdoc(getattr(rl, name)) for name in rl.__all__)
    assert inspect.isfunction(rl.train) and inspect.isfunction(rl.evaluate)  # not modules of these names
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        rl.trian  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("imdb_positiv", "imdb_positiv is neither a .yaml file nor a preset; did you mean imdb_positive?"),
        ("x", f"x is neither a .yaml file nor a preset; the presets are {', '.join(presets())}"),
    ],
)
def test_an_unknown_preset_is_a_users_mistake(name: str, expected: str) -> None:
    with pytest.raises(rl.UserError) as caught:
        rl.load_config(name)
    assert str(caught.value) == expected


def test_a_preset_is_its_file() -> None:
    assert rl.load_config("recipes/grpo") == rl.load_config(ROOT / "configs" / "recipes" / "grpo.yaml")


def unpacked_wheel(folder: Path, *ignored: str) -> Path:
    """A folder for ``PYTHONPATH`` with what a wheel installs, but for files that match ``ignored``."""
    source, site = folder / "source", folder / "site"
    for name in ("rlgaf_ray", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", *ignored))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(folder)], cwd=source, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(site)
    return site


def test_a_wheel_holds_the_presets_and_the_types(tmp_path: Path) -> None:
    site = unpacked_wheel(tmp_path, "*.safetensors")
    assert (site / "rlgaf_ray" / "py.typed").is_file() and (site / "rlgaf_ray" / "__init__.pyi").is_file()
    inside = {path.relative_to(site / "rlgaf_ray" / "configs") for path in site.glob("rlgaf_ray/configs/**/*.yaml")}
    assert inside == {path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml")}
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED], cwd=tmp_path, env={"PYTHONPATH": str(site)}, capture_output=True, text=True
    )
    assert done.stdout.split() == [str(site / "rlgaf_ray" / "__init__.py"), "3"], done.stderr
