"""What a config chooses by name is decided in one table: nowhere else does a branch compare with such a name."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping, Sequence

import pytest

from rlgaf_ray.config.engines import ENGINES
from tests.unit.test_floors import package_sources

TABLES: Mapping[str, tuple[Collection[str], str]] = {
    "engine": (tuple(ENGINES), "rlgaf_ray.config.engines"),
}
"""The choice, its names, and the module of its table."""


def branches(source: str, names: Collection[str]) -> Iterator[tuple[int, str]]:
    """Line and name of every comparison with one of the names, ``case`` patterns and ``in (...)`` included."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Compare():
                operands = [node.left, *node.comparators]
            case ast.MatchValue():
                operands = [node.value]
            case _:
                continue
        for value in (value for operand in operands for value in _values(operand)):
            if isinstance(value, ast.Constant) and value.value in names:
                yield node.lineno, value.value


def _values(operand: ast.expr | None) -> Sequence[ast.expr | None]:
    match operand:
        case ast.Tuple() | ast.List() | ast.Set():
            return operand.elts
        case ast.Dict():
            return operand.keys
    return [operand]


@pytest.mark.parametrize("choice", TABLES)
def test_nobody_branches_on_a_name_outside_its_table(choice: str) -> None:
    names, table = TABLES[choice]
    sources = package_sources()
    assert table in sources
    found = [
        f"{module}:{line}: {name}"
        for module, source in sources.items()
        if module != table
        for line, name in branches(source, names)
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "x = engine == 'b'",
        "if 'b' != engine: pass",
        "y = [e for e in all if e in ('c', 'b')]",
        "match engine:\n    case 'a' | 'b':\n        pass",
        "while engine not in {'b': 1}: pass",
    ],
)
def test_a_planted_branch_is_found(source: str) -> None:
    assert [name for _, name in branches(source, ("b", "z"))] == ["b"]


def test_a_name_that_is_handed_on_is_no_branch() -> None:
    assert not list(
        branches("run('b', engine='b')\ny = find('b') is None\nx = {'b': 1}['b']\nraise ValueError('b')", ("b",))
    )
