"""What benchmarks and experiments take from the package is there: no other test starts most of them."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path for folder in ("benchmarks", "experiments") for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_imported_names_exist(path: Path):
    imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    wanted = [(node.module, node.names) for node in imports if node.module and node.module.startswith("rlgaf_ray")]
    for name, names in wanted:
        module = importlib.import_module(name)
        missing = [alias.name for alias in names if not hasattr(module, alias.name)]
        assert not missing, f"{name} has no {', '.join(missing)}"
