"""What a config chooses by name is decided in one table: nowhere else does a branch compare with such a name."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import get_args

import pytest

from rlgaf_ray.config.discriminator import DiscriminatorArchitecture, DiscriminatorLoss
from rlgaf_ray.config.engines import ENGINES
from rlgaf_ray.config.reward import RewardCombination, RewardKind
from tests.unit.test_floors import package_sources

CHOICES: dict[str, tuple[str, ...]] = {
    "engine": tuple(ENGINES),
    "architecture": get_args(DiscriminatorArchitecture),
    "loss": get_args(DiscriminatorLoss),
    "kind": get_args(RewardKind),
    "combine": get_args(RewardCombination),
}
"""The last part of the key, and its values."""
AMBIGUOUS = {"generator", "transformers"}
"""Values that other things are called, too: a branch on them is one where the key stands beside it."""


def branches(source: str) -> Iterator[tuple[int, str]]:
    """Line and key of every comparison with one of the values, ``case`` patterns and ``in (...)`` included."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Compare(left=left, comparators=comparators):
                operands: Sequence[ast.AST | None] = [left, *comparators]
            case ast.Match(subject=subject, cases=cases):
                patterns = [part for case in cases for part in ast.walk(case.pattern)]
                operands = [subject, *(part.value for part in patterns if isinstance(part, ast.MatchValue))]
            case _:
                continue
        values = {
            value.value
            for operand in operands
            for value in _values(operand)
            if isinstance(value, ast.Constant) and isinstance(value.value, str)
        }
        names = {part.attr for each in operands if each for part in ast.walk(each) if isinstance(part, ast.Attribute)}
        for key, choices in CHOICES.items():
            if values & set(choices) and (key in names or values & (set(choices) - AMBIGUOUS)):
                yield node.lineno, key


def _values(operand: ast.AST | None) -> Sequence[ast.AST | None]:
    match operand:
        case ast.Tuple() | ast.List() | ast.Set():
            return operand.elts
        case ast.Dict():
            return operand.keys
    return [operand]


def test_nothing_branches_on_a_chosen_name() -> None:
    found = [f"{module}:{line}: {key}" for module, text in package_sources().items() for line, key in branches(text)]
    assert found == []


@pytest.mark.parametrize(
    ("source", "key"),
    [
        ("x = engine == 'vllm'", "engine"),
        ("if 'vllm_async' != engine: pass", "engine"),
        ("if rollout.engine == 'transformers': pass", "engine"),
        ("while engine not in {'vllm': 1}: pass", "engine"),
        ("if settings.architecture == 'generator': pass", "architecture"),
        ("cnn = 'cnn' != kind", "architecture"),
        ("if loss in ('hinge', 'other'): pass", "loss"),
        ("match kind:\n    case 'a' | 'contrastive': pass", "loss"),
        ("match settings.kind:\n    case 'log_probability': pass", "kind"),
        ("x = combine == 'product'", "combine"),
    ],
)
def test_a_planted_branch_is_found(source: str, key: str) -> None:
    assert [found for _, found in branches(source)] == [key]


@pytest.mark.parametrize(
    "source",
    [
        "if part == 'generator': pass",
        "x = TABLE['hinge']",
        "if loss in TABLE: pass",
        "run('vllm', engine='vllm')",
        "y = find('vllm') is None",
        "raise ValueError('vllm')",
    ],
)
def test_what_is_no_branch_on_a_choice_is_let_through(source: str) -> None:
    assert list(branches(source)) == []
