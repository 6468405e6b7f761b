"""The workflows, the hooks and `.ci/run` run the same commands, with the same versions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlgaf_ray import __version__
from tests.unit.test_dependencies import pins

REPOSITORY = Path(__file__).parents[2]
WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").iterdir())


def read(path: Path) -> dict[Any, Any]:
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def jobs(path: Path) -> list[dict[str, Any]]:
    return list(read(path)["jobs"].values())


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in jobs(path) for step in job["steps"]]


def goals(command: str) -> set[str]:
    """The goals of a line that is one call of make and nothing else."""
    program, *words = command.split()
    assert program == "make" and all(re.fullmatch(r"[a-z-]+", word) for word in words), command
    return set(words)


def test_the_workflows_run_what_ci_run_does() -> None:
    script = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    expected = set().union(*(goals(line) for line in script if line.startswith("make")))
    found = [goals(step["run"]) for path in WORKFLOWS for step in steps(path) if "run" in step]
    assert sorted(map(sorted, found)) == [["lint", "test"], ["test-all"]]
    assert set().union(*found) == expected
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert expected <= set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_is_pinned_bounded_and_may_only_read(path: Path) -> None:
    assert read(path)["permissions"] == {"contents": "read"}
    for job in jobs(path):
        assert job["timeout-minutes"] <= 360 and "permissions" not in job
    used = [step["uses"] for step in steps(path) if "uses" in step]
    assert len(used) == 3
    assert all(re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", each) for each in used), used


def test_the_environment_is_cached_by_all_that_decides_what_is_in_it() -> None:
    caches = [
        step["with"] for path in WORKFLOWS for step in steps(path) if step.get("uses", "").startswith("actions/cache@")
    ]
    assert len(caches) == len(WORKFLOWS) and all(each == caches[0] for each in caches)
    assert caches[0]["path"] == ".venv"
    (names,) = re.findall(r"hashFiles\((.*?)\)", caches[0]["key"])
    files = re.findall(r"'(.*?)'", names)
    assert {"pyproject.toml", "constraints.txt"} <= set(files)
    assert all((REPOSITORY / name).is_file() for name in files)


def test_the_hooks_have_the_tested_versions() -> None:
    tested = pins("constraints.txt")
    (repository,) = read(REPOSITORY / ".pre-commit-config.yaml")["repos"]
    needed = {name for hook in repository["hooks"] for name in hook["additional_dependencies"]}
    pinned = dict(each.split("==") for each in needed)
    assert {"codespell", "ruff"} <= pinned.keys() & tested.keys()
    for name in pinned.keys() & tested.keys():
        assert pinned[name] == str(tested[name]), name


def test_the_citation_and_the_changelog_know_the_version() -> None:
    assert read(REPOSITORY / "CITATION.cff")["version"] == __version__
    changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(.+?)\]", changelog, re.MULTILINE)
    assert versions[0] == __version__
