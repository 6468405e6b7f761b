"""What the installation passes on of pip's configuration to uv, and how it calls either."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "install.py"
LISTED = """\
:env:.find-links='/mine'
global.find-links='/wheels /more'
global.index-url='https://mirror/simple'
install.cert='/etc/certificates'
"""


@pytest.fixture
def install() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def calls(install: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands of the script, none of which is run."""
    made: list[list[str]] = []

    def run(words: list[str], **options: object) -> SimpleNamespace:
        made.append(words)
        return SimpleNamespace(returncode=0, stdout=LISTED)

    monkeypatch.setattr(subprocess, "run", run)
    return made


def test_the_environment_wins_over_pips_files(install: ModuleType, calls: list[list[str]]) -> None:
    assert install.pip_settings(["pip"]) == {
        "find-links": ["/mine"],
        "index-url": ["https://mirror/simple"],
        "cert": ["/etc/certificates"],
    }


def test_pips_settings_become_uvs_and_those_that_are_set_stay(install: ModuleType) -> None:
    settings = {"find-links": ["/wheels", "/more"], "index-url": ["https://mirror/simple"], "extra-index-url": ["x"]}
    assert install.uv_environment({"UV_DEFAULT_INDEX": "mine"}, settings, cpu=True) == {
        "UV_DEFAULT_INDEX": "mine",
        "UV_FIND_LINKS": "/wheels,/more",
    }


@pytest.mark.parametrize(("cpu", "expected"), [(True, {"UV_TORCH_BACKEND": "cpu"}), (False, {})])
def test_torch_comes_from_the_cpu_index_where_pip_has_no_wheels(install: ModuleType, cpu: bool, expected: dict) -> None:
    assert install.uv_environment({}, {}, cpu=cpu) == expected


def test_pip_is_taken_where_it_is_asked_for(install: ModuleType, calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSTALLER", "pip")
    monkeypatch.setattr(sys, "argv", ["install.py", "/venv", "cpu,dev"])
    assert install.main() == 0
    first, last = calls
    assert first[:3] == ["/venv/bin/python", "-m", "pip"] and first[-4:] == [
        "-c",
        "constraints.txt",
        "-e",
        ".[cpu,dev]",
    ]
    assert "compileall" in last


def test_the_lock_is_installed_without_resolving(install: ModuleType, calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INSTALLER", raising=False)
    monkeypatch.setattr(install.shutil, "which", lambda name: "/bin/uv")
    monkeypatch.setattr(sys, "argv", ["install.py", "/venv", "--locked"])
    assert install.main() == 0
    _, locked, itself = calls
    assert locked[:5] == ["/bin/uv", "pip", "install", "--python", "/venv/bin/python"]
    assert {"--no-deps", "--require-hashes"} <= set(locked) and locked[-1] == "requirements.lock"
    assert {"--no-deps", "--no-build-isolation"} <= set(itself)
