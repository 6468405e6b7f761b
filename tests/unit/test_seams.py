"""What a config chooses by name is chosen in one table: nothing else branches on the name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import get_args

import pytest

from rlgaf_ray.config.discriminator import DiscriminatorArchitecture, DiscriminatorLoss
from tests.unit.test_floors import package_sources

# The last part of the key, and its values.
CHOICES: dict[str, tuple[str, ...]] = {
    "architecture": get_args(DiscriminatorArchitecture),
    "loss": get_args(DiscriminatorLoss),
}


def branches(source: str) -> Iterator[tuple[int, str]]:
    """Line and key of every comparison and match of a chosen name with one of its values.

    The name is known as ``x.key``, or as a variable of any name where the value belongs to this choice alone.
    """
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Compare(left=left, comparators=comparators):
                subjects = [left, *comparators]
            case ast.Match(subject=subject, cases=cases):
                subjects = [subject, *(case.pattern for case in cases)]
            case _:
                continue
        inside = [part for subject in subjects for part in ast.walk(subject)]
        values = {part.value for part in inside if isinstance(part, ast.Constant)}
        names = {part.attr for part in inside if isinstance(part, ast.Attribute)}
        for key, choices in CHOICES.items():
            if values & set(choices) and (key in names or values & (set(choices) - {"generator"})):
                yield node.lineno, key


def test_nothing_branches_on_a_chosen_name() -> None:
    found = [f"{module}:{line}: {key}" for module, text in package_sources().items() for line, key in branches(text)]
    assert found == []


@pytest.mark.parametrize(
    ("source", "key"),
    [
        ("if settings.architecture == 'generator': pass", "architecture"),
        ("cnn = 'cnn' != kind", "architecture"),
        ("if loss in ('hinge', 'other'): pass", "loss"),
        ("match kind:\n    case 'a' | 'contrastive': pass", "loss"),
    ],
)
def test_a_planted_branch_is_found(source: str, key: str) -> None:
    assert [found for _, found in branches(source)] == [key]


@pytest.mark.parametrize("source", ["if part == 'generator': pass", "x = TABLE['hinge']", "if loss in TABLE: pass"])
def test_what_is_no_branch_on_a_choice_is_let_through(source: str) -> None:
    assert list(branches(source)) == []
