"""Imports point only downward, from the source itself: floors, cycles, and who may import Ray and vLLM."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "rlgaf_ray"

FLOORS = {
    **dict.fromkeys(
        ("__main__", "main", "cli", "run", "doctor", "checkup", "plan", "report", "sweep", "compare", "testing"), 5
    ),
    **dict.fromkeys(("loop", "actors"), 4),
    **dict.fromkeys(("training", "engines", "weights", "evaluation", "tracking"), 3),
    **dict.fromkeys(("models", "data"), 2),
    "objectives": 1,
    **dict.fromkeys(("types", "config", "plugins"), 0),
    **dict.fromkeys(("errors", "metrics"), -1),
}
NEIGHBOURS_MAY_IMPORT = {3, 5}  # elsewhere parts of one floor are siblings that do not know each other
RAY_IN = ("rlgaf_ray.actors.", "rlgaf_ray.sweep.", "rlgaf_ray.compare.runner", "rlgaf_ray.main")
VLLM_IN = ("rlgaf_ray.engines.vllm", "rlgaf_ray.weights.")


@dataclass(frozen=True)
class Import:
    line: int
    target: str  # dotted name, of a module or of a name inside one
    at_import: bool  # runs when the module is imported, not only when a function of it is called
    for_types: bool  # under `if TYPE_CHECKING`: never runs


def imports(source: str) -> list[Import]:
    return list(_imports(ast.parse(source), at_import=True, for_types=False))


def _imports(node: ast.AST, *, at_import: bool, for_types: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.Import():
                for alias in child.names:
                    yield Import(child.lineno, alias.name, at_import, for_types)
            case ast.ImportFrom():
                origin = "." * child.level + (child.module or "")
                for alias in child.names:
                    yield Import(child.lineno, f"{origin}.{alias.name}", at_import, for_types)
            case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                for statement in child.body:
                    yield from _imports(ast.Module([statement], []), at_import=at_import, for_types=True)
                for statement in child.orelse:
                    yield from _imports(ast.Module([statement], []), at_import=at_import, for_types=for_types)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                yield from _imports(child, at_import=False, for_types=for_types)
            case _:
                yield from _imports(child, at_import=at_import, for_types=for_types)


def violations(modules: Mapping[str, str]) -> list[str]:
    """What the sources, by dotted module name, do against the rules."""
    found = []
    for module, source in modules.items():
        for item in imports(source):
            problem = _problem(module, item)
            if problem:
                found.append(f"{module}:{item.line} imports {item.target}: {problem}")
    return found + _cycles(modules)


def _problem(module: str, item: Import) -> str | None:
    origin, here = item.target.split(".")[0], _part(module)
    match origin:
        case "":
            return "relative"
        case "ray" if not module.startswith(RAY_IN):
            return "Ray is for actors/, sweep/ and main.py"
        case "vllm" if not module.startswith(VLLM_IN):
            return "vLLM is for engines/vllm.py and weights/"
        case "vllm" if item.at_import and not item.for_types:
            return "vLLM is imported inside functions only"
        case "rlgaf_ray":
            there = _part(item.target)
            if here == there or "" in (here, there):
                return None
            if FLOORS[there] > FLOORS[here]:
                return f"floor {FLOORS[here]} reaches up to {FLOORS[there]}"
            if FLOORS[there] == FLOORS[here] and FLOORS[here] not in NEIGHBOURS_MAY_IMPORT:
                return f"siblings on floor {FLOORS[here]}"
    return None


def _part(name: str) -> str:
    """The part of the package that a dotted name lies in: ``rlgaf_ray.data.imdb.ImdbTask`` -> ``data``."""
    name = name.removeprefix("rlgaf_ray").removeprefix(".").split(".")[0]
    return "" if name == "__version__" else name


def _cycles(modules: Mapping[str, str]) -> list[str]:
    """The first circle of modules, and of parts of the package, that import one another, be it for types alone."""
    graph: dict[str, set[str]] = {module: set() for module in modules}
    parts: dict[str, set[str]] = {}
    for module, source in modules.items():
        for item in imports(source):
            target = _module_of(item.target, modules)
            if target and target != module:
                graph[module].add(target)
                if _part(target) != _part(module):
                    parts.setdefault(_part(module), set()).add(_part(target))
    found = []
    for name, edges in (("modules", graph), ("parts", parts)):
        try:
            TopologicalSorter(edges).prepare()
        except CycleError as error:
            found.append(f"{name} in a circle: {' <- '.join(error.args[1])}")
    return found


def _module_of(target: str, modules: Mapping[str, str]) -> str | None:
    """The module that a dotted name is, or is a name of."""
    while target and target not in modules:
        target = target.rpartition(".")[0]
    return target or None


def package_sources() -> dict[str, str]:
    sources = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        sources[".".join(parts).removesuffix(".__init__")] = path.read_text(encoding="utf-8")
    return sources


def test_the_package_keeps_its_floors() -> None:
    sources = package_sources()
    assert {"rlgaf_ray.types", "rlgaf_ray.config.load", "rlgaf_ray.main"} <= sources.keys()
    assert violations(sources) == []


def test_every_part_has_a_floor() -> None:
    assert {_part(module) for module in package_sources()} - {""} <= FLOORS.keys()


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("config.load", "import rlgaf_ray.types", "siblings on floor 0"),
        ("config.load", "from rlgaf_ray.objectives import kl", "floor 0 reaches up to 1"),
        ("objectives.kl", "from rlgaf_ray import models", "floor 1 reaches up to 2"),
        ("data.imdb", "from rlgaf_ray.models.tokenizer import wrap_bpe", "siblings on floor 2"),
        ("training.ppo", "from rlgaf_ray.loop import guard", "floor 3 reaches up to 4"),
        ("loop.roles", "def run():\n    from rlgaf_ray.actors.roles import RayRoles", "siblings on floor 4"),
        ("models.scalar", "if TYPE_CHECKING:\n    from rlgaf_ray.training.ppo import PPO", "floor 2 reaches up to 3"),
        ("models.scalar", "from . import generator", "relative"),
        ("models.scalar", "try:\n    import rlgaf_ray.report\nfinally:\n    pass", "floor 2 reaches up to 5"),
        ("run.train", "import ray", "Ray is for actors/, sweep/ and main.py"),
        ("loop.local", "def run():\n    from ray.util import queue", "Ray is for actors/, sweep/ and main.py"),
        ("engines.build", "def run():\n    import vllm", "vLLM is for engines/vllm.py and weights/"),
        ("engines.vllm", "from vllm import LLM", "vLLM is imported inside functions only"),
        ("weights.object_store", "class A:\n    import vllm.config", "vLLM is imported inside functions only"),
        ("engines.vllm", "if TYPE_CHECKING:\n  pass\nelse:\n  import vllm", "vLLM is imported inside functions only"),
    ],
)  # fmt: skip
def test_a_planted_violation_is_found(module: str, source: str, expected: str) -> None:
    (found,) = violations({f"rlgaf_ray.{module}": source})
    assert found.startswith(f"rlgaf_ray.{module}:")
    assert found.endswith(f": {expected}")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("loop.local", "from rlgaf_ray.engines.base import RolloutEngine\nimport rayleigh"),
        ("training.learner", "from rlgaf_ray.weights import state"),
        ("actors.roles", "import ray\nfrom rlgaf_ray.config import Config"),
        ("main", "import ray\nfrom rlgaf_ray import doctor, run, __version__"),
        ("engines.vllm", "if TYPE_CHECKING:\n    from vllm import LLM\ndef run():\n    import vllm"),
        ("weights.object_store", "run = lambda: __import__('vllm')\nasync def push():\n    from vllm import LLM"),
    ],
)
def test_what_is_allowed_is_let_through(module: str, source: str) -> None:
    assert violations({f"rlgaf_ray.{module}": source}) == []


def test_a_planted_circle_is_found() -> None:
    one, two, three = (f"rlgaf_ray.training.{name}" for name in ("one", "two", "three"))
    sources = {one: f"import {two}", two: f"def late():\n    from {three} import x", three: f"from {one} import y"}
    (found,) = violations(sources)
    assert found.startswith("modules in a circle: ")
    assert all(module in found for module in sources)
    (found,) = violations({**sources, three: f"if TYPE_CHECKING:\n    from {one} import y"})
    assert found.startswith("modules in a circle: ")
    assert violations({**sources, three: ""}) == []


def test_a_planted_circle_of_neighbouring_parts_is_found() -> None:
    sources = {
        "rlgaf_ray.training.a": "import rlgaf_ray.weights.b",
        "rlgaf_ray.training.c": "",
        "rlgaf_ray.weights.b": "import rlgaf_ray.engines.d",
        "rlgaf_ray.engines.d": "import rlgaf_ray.training.c",
    }
    (found,) = violations(sources)
    assert found.startswith("parts in a circle: ")
    assert all(part in found for part in ("training", "weights", "engines"))


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("rlgaf_ray.config", "torch ray vllm transformers"),
        ("rlgaf_ray.main", "torch ray vllm transformers pydantic yaml"),
        ("rlgaf_ray.cli", "torch ray vllm transformers pydantic"),
        ("rlgaf_ray.objectives", "ray vllm transformers"),
        ("rlgaf_ray.plan.memory", "torch ray vllm transformers"),
        ("rlgaf_ray.plan.speed", "torch ray vllm transformers"),
    ],
)
def test_importing_loads_nothing_heavy(module: str, unwanted: str) -> None:
    script = f"""
import importlib, pkgutil, sys
package = importlib.import_module({module!r})
for item in pkgutil.iter_modules(getattr(package, "__path__", [])):
    importlib.import_module({module!r} + "." + item.name)
print(*sorted(set({unwanted!r}.split()) & set(sys.modules)), {module!r} in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"]
