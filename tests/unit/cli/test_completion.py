"""Shell completion in bash and zsh."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlgaf_ray.cli.app import app
from rlgaf_ray.cli.completion import words
from rlgaf_ray.config import Config
from rlgaf_ray.config.explain import keys_of
from rlgaf_ray.config.presets import presets
from rlgaf_ray.main import main

BASH = shutil.which("bash")
ZSH = shutil.which("zsh")


@pytest.fixture(params=["bash", "zsh"])
def complete(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, capsys):
    """Complete the last word; return the completions with their types."""

    def run(*arguments: str) -> dict[str, str]:
        monkeypatch.setenv("_RLGAF_COMPLETE", f"{request.param}_complete")
        monkeypatch.setenv("COMP_WORDS", "\n".join(["rlgaf", *arguments]))
        monkeypatch.setenv("COMP_CWORD", str(len(arguments)))
        assert main([]) == 0
        lines = list(filter(None, capsys.readouterr().out.splitlines()))
        if request.param == "bash":
            return {value: kind for kind, _, value in (line.partition(",") for line in lines)}
        return {value: kind for kind, value, _ in zip(*[iter(lines)] * 3, strict=True)}

    return run


def test_commands(complete) -> None:
    assert list(complete("")) == list(app.commands)
    assert complete("eval").keys() >= {"evaluate", "evaluation."}
    assert complete("plan", "--no") == {"--nodes": "plain"}
    assert "--small" in complete("imdb_positive", "--s")


def test_keys(complete) -> None:
    names = ["learning_rate", "learning_rate_schedule", "learning_rate_warmup"]
    assert complete("train", "generator.lea") == {f"generator.{name}=": "open" for name in names}
    assert complete("train", "genera") == {"generator.": "open"}
    assert complete("genera") == {"generator.": "open"}
    assert complete("imdb_positive", "generator.reinforce.kl.coe") == {"generator.reinforce.kl.coefficient=": "open"}
    assert complete("plan", "task.jsonl.sh") == {"task.jsonl.shares.": "open"}
    assert complete("train", "run.seed.x") == complete("train", "nothing.x") == complete("train", "run.seed=1") == {}


def test_presets_and_files(complete, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("")
    (tmp_path / "minor").mkdir()
    assert complete("train", "recipes/g") == {name: "plain" for name in presets() if name.startswith("recipes/g")}
    assert complete("train", "mi") == {"mine.yaml": "plain", "minor/": "open"}


def test_every_key_is_completed() -> None:
    """Descend section by section to the leaves."""
    found, sections = set(), [f"{name}." for name in Config.model_fields]
    while sections:
        for item in words(sections.pop()):
            found.add(item.value.rstrip(".="))
            if item.value.endswith("."):
                sections.append(item.value)
    assert found <= {*keys_of(Config)} and found >= set(_below(Config().model_dump()))


def _below(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if prefix:
            yield prefix + key
        if isinstance(value, dict):
            yield from _below(value, f"{prefix}{key}.")


def program(tmp_path: Path) -> dict[str, str]:
    """Return environment variables with ``rlgaf`` on the path."""
    script = tmp_path / "rlgaf"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m rlgaf_ray "$@"\n')
    script.chmod(0o755)
    return os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(Path(__file__).parents[3])}


@pytest.mark.skipif(BASH is None, reason="bash is not installed")
def test_the_script_in_bash(tmp_path: Path) -> None:
    lines = """
eval "$(_RLGAF_COMPLETE=bash_source rlgaf)"
complete -p rlgaf
try() { COMP_WORDS=(rlgaf "$@"); COMP_CWORD=$#; COMPREPLY=(); _rlgaf_completion rlgaf; echo "${COMPREPLY[@]}"; }
compopt() { echo compopt "$@"; }
try rep
try train generator.reinforce.kl.coe
try generator.learning_rate = 1
"""
    done = subprocess.run(
        [str(BASH), "--norc", "-c", lines], capture_output=True, text=True, env=program(tmp_path), cwd=tmp_path
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "complete -o nosort -F _rlgaf_completion rlgaf",
        "report",
        "compopt -o nospace",
        "generator.reinforce.kl.coefficient=",
        "",
    ]


@pytest.mark.skipif(ZSH is None, reason="zsh is not installed")
def test_the_script_in_zsh(tmp_path: Path) -> None:
    lines = """
autoload -Uz compinit; compinit -u -D
eval "$(_RLGAF_COMPLETE=zsh_source rlgaf)"
compadd() { echo compadd "$@"; }
_describe() { echo "$1 $2 $3: ${completions_with_descriptions[1]%%:*}"; }
words=(rlgaf train generator.reinforce.kl.coe); CURRENT=3; _rlgaf_completion
words=(rlgaf rep); CURRENT=2; _rlgaf_completion
"""
    done = subprocess.run(
        [str(ZSH), "-f", "-c", lines], capture_output=True, text=True, env=program(tmp_path), cwd=tmp_path
    )
    assert done.stdout.splitlines() == [
        "compadd -U -S  -- generator.reinforce.kl.coefficient=",
        "-V unsorted completions_with_descriptions: report",
    ], done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_script_supports_completions_without_a_space(shell: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("_RLGAF_COMPLETE", f"{shell}_source")
    assert main([]) == 0
    script = capsys.readouterr().out
    assert "open" in script and ("nospace" if shell == "bash" else "compadd -U -S '' --") in script
