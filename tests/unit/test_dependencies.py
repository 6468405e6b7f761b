"""The lists of versions agree with one another, and every direct dependency has its reason."""

from __future__ import annotations

import re
import tomllib
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from rlgaf_ray.doctor import COMPANIONS

REPOSITORY = Path(__file__).parents[2]
# Each build of torch and of vLLM asks for its own (constraints.txt), and setuptools is theirs and the build's.
FREE = {"apache-tvm-ffi", "setuptools", "triton"}


def lines(name: str) -> list[str]:
    return [line for line in (REPOSITORY / name).read_text().splitlines() if line and not line.startswith("#")]


def pins(name: str) -> dict[str, Version]:
    pairs = [line.split()[0].split("==") for line in lines(name)]
    found: dict[str, Version] = {canonicalize_name(package): Version(version) for package, version in pairs}
    assert len(found) == len(pairs), f"{name} names a package twice"
    return found


def direct(*extras: str) -> list[Requirement]:
    """What pyproject.toml asks for, with these extras, or with all."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    more = project["optional-dependencies"]
    return [Requirement(text) for text in [*project["dependencies"], *chain(*(more[name] for name in extras or more))]]


def test_the_lock_has_the_constraints_versions() -> None:
    locked, tested = pins("requirements.lock"), pins("constraints.txt")
    for name, version in locked.items():
        if name not in FREE:
            assert name in tested and version.public == tested[name].public, name


def test_the_lock_has_hashes_for_each_package_and_no_address() -> None:
    for line in lines("requirements.lock"):
        assert re.fullmatch(r"[\w.-]+==[\w.+]+( --hash=sha256:[0-9a-f]{64})+", line), line


def test_the_lock_serves_what_is_asked_for() -> None:
    locked = pins("requirements.lock")
    for requirement in direct("cpu", "dev"):
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), requirement
    assert not set(COMPANIONS) & locked.keys()
    assert locked["torch"].local == "cpu"


def test_every_direct_dependency_has_a_reason() -> None:
    rows = [line.split("|")[1:-1] for line in lines("docs/dependencies.md") if line.startswith("|")]
    explained = {
        canonicalize_name(word) for *names, _ in rows for cell in names for word in re.findall(r"[\w-]+", cell)
    }
    assert {canonicalize_name(requirement.name) for requirement in direct()} <= explained
