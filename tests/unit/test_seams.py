"""What a config chooses by name is decided in one table.

Elsewhere no branch compares with such a name, nor asks whether an object is of a class that stands behind one:
``==``, ``!=``, ``in``, ``case``, ``isinstance`` and class patterns count.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest

from rlgaf_ray.config.discriminator import DiscriminatorArchitecture, DiscriminatorLoss
from rlgaf_ray.config.engines import ENGINES
from rlgaf_ray.config.generator import AlgorithmName, GeneratorSection
from rlgaf_ray.config.reward import RewardCombination, RewardKind
from rlgaf_ray.config.rows import TaskSettings
from rlgaf_ray.config.task import TASKS, TaskSection
from tests.unit.test_floors import package_sources

CHOICES: dict[str, tuple[str, ...]] = {
    "engine": tuple(ENGINES),
    "architecture": get_args(DiscriminatorArchitecture),
    "loss": get_args(DiscriminatorLoss),
    "algorithm": get_args(AlgorithmName),
    "name": tuple(TASKS),
    "kind": get_args(RewardKind),
    "combine": get_args(RewardCombination),
}
"""The last part of the key, and its values."""


def subclasses(*bases: str) -> set[str]:
    """Names of the package's classes that derive directly from one of these."""
    classes = [node for text in package_sources().values() for node in ast.walk(ast.parse(text))]
    return {
        node.name
        for node in classes
        if isinstance(node, ast.ClassDef) and {base.id for base in node.bases if isinstance(base, ast.Name)} & {*bases}
    }


CLASSES: dict[str, set[str]] = {
    "engine": {traits.engine.partition(":")[2] for traits in ENGINES.values()},
    "algorithm": subclasses("Algorithm", "AlgorithmSettings", "PolicyGradientSettings"),
}
"""Names of the classes behind a key's values: of what is built, and of its section in the config."""
AMBIGUOUS = {"generator", "transformers", "hub", "python"}
"""Values that other things are called, too: a branch on them is one where the key stands beside it."""


def branches(source: str) -> Iterator[tuple[int, str]]:
    """Line and key of every comparison with one of the values or classes."""
    for node in ast.walk(ast.parse(source)):
        for key in _class_tests(node):
            assert isinstance(node, ast.expr | ast.stmt | ast.pattern)
            yield node.lineno, key
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


def _class_tests(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Call(func=ast.Name(id="isinstance"), args=[_, kind]) | ast.MatchClass(cls=kind):
            names = {part.id for part in ast.walk(kind) if isinstance(part, ast.Name)}
            names |= {part.attr for part in ast.walk(kind) if isinstance(part, ast.Attribute)}
            yield from (key for key, classes in CLASSES.items() if names & classes)


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


def test_no_task_is_known_by_its_class() -> None:
    """Outside ``data/``, tasks are used through their protocols."""
    modules = {traits.source.partition(":")[0] for traits in TASKS.values()} - {""}
    sources = {module: ast.parse(text) for module, text in package_sources().items()}
    classes = {
        node.name
        for module in (*modules, "rlgaf_ray.data.pairs")
        for node in sources[module].body
        if isinstance(node, ast.ClassDef) and node.name.endswith(("Task", "Source"))
    }
    expected = {"ImdbTask", "ImdbSource", "PairTask", "PairSource", "RowSource", "BridgeTask", "BridgeSource"}
    assert classes == expected
    found = [
        f"{module}:{node.lineno}: {alias.name}"
        for module, tree in sources.items()
        if not module.startswith("rlgaf_ray.data.")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name in classes
    ]
    assert found == []


@pytest.mark.parametrize("name", [name for name, traits in TASKS.items() if traits.source])
def test_every_task_has_its_settings_and_a_loader(name: str) -> None:
    module, _, function = TASKS[name].source.partition(":")  # type: ignore[index]
    assert callable(getattr(import_module(module), function))
    assert isinstance(getattr(TaskSection(), name), TaskSettings)


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
        ("if task == 'imdb': pass", "name"),
        ("if config.task.name in ('hub', 'x'): pass", "name"),
        ("match task.name:\n    case 'python': pass", "name"),
        ("if generator.algorithm == 'ppo': pass", "algorithm"),
        ("x = {'seqgan': 1} if name in ('seqgan', 'gumbel') else {}", "algorithm"),
        ("if isinstance(learner.algorithm, PPO): pass", "algorithm"),
        ("ok = isinstance(x, str | gumbel.GumbelSoftmax)", "algorithm"),
        ("match x:\n    case PPOSettings(): pass", "algorithm"),
        ("assert isinstance(engine, VLLMEngine)", "engine"),
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
        "if source == 'hub': pass",
        "x = TABLE['hinge']",
        "if loss in TABLE: pass",
        "run('vllm', engine='vllm')",
        "y = find('vllm') is None",
        "raise ValueError('vllm')",
        "x = config.generator.ppo.epochs",
        "if isinstance(x, Algorithm): pass",
    ],
)
def test_what_is_no_branch_on_a_choice_is_let_through(source: str) -> None:
    assert list(branches(source)) == []


def test_every_algorithm_has_its_section_and_its_class() -> None:
    from rlgaf_ray.training.algorithms import ALGORITHMS

    generator = GeneratorSection()
    assert CLASSES["algorithm"] >= {"Reinforce", "PPO", "GumbelSoftmax", "PPOSettings", "SeqGANSettings"}
    assert {name: each.key for name, each in generator.settings.items()} == {name: name for name in ALGORITHMS}
    assert set(ALGORITHMS) == set(get_args(AlgorithmName))


def test_the_page_on_extending_names_tests_that_are_there() -> None:
    root = Path(__file__).parents[2]
    page = (root / "docs/extending.md").read_text()
    named = set(re.findall(r"`(tests/[\w/.]+)`", page)) | {
        f"docs/{name}" for name in re.findall(r"\]\((\w+\.md)", page)
    }
    assert len(named) > 8 and [path for path in named if not (root / path).is_file()] == []
