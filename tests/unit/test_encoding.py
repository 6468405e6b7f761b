"""Text files are UTF-8 and output never fails, whatever the locale and the terminal are."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "rlgaf_ray"
ODD = "caf\xe9 \u2028 \U0001f600 \u4f60\u597d \xb1"


def in_the_locales_encoding(source: str) -> Iterator[int]:
    """Lines that read or write text without saying in which encoding."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name | ast.Attribute):
            continue
        name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
        values = [*node.args, *(word.value for word in node.keywords)]
        constants = {value.value for value in values if isinstance(value, ast.Constant)}
        is_text = name in ("write_text", "read_text") or (name == "open" and constants & {"r", "w", "a", "x"})
        if is_text and "encoding" not in {word.arg for word in node.keywords}:
            yield node.lineno


def test_text_files_are_utf_8() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line in in_the_locales_encoding(path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize("source", ["path.write_text('a')", "path.open('a')", "open(path, mode='w')", "p.read_text()"])
def test_a_file_in_another_encoding_is_found(source: str) -> None:
    assert list(in_the_locales_encoding(source)) == [1]
    assert not list(in_the_locales_encoding(f"{source[:-1]}, encoding='utf-8')".replace("(, ", "(")))


LOCALES = [
    {"PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"PYTHONIOENCODING": "latin-1"},
    {"PYTHONIOENCODING": "cp1252"},
]


@pytest.mark.parametrize("variables", LOCALES)
def test_a_run_is_shown_and_kept_in_any_locale(tmp_path: Path, variables: dict[str, str]) -> None:
    code = f"""
from pathlib import Path
from rlgaf_ray import main
from rlgaf_ray.loop.outcome import Outcome
from rlgaf_ray.config import load_config
from rlgaf_ray.report.console import Terminal, write_samples
from rlgaf_ray.report.runs import save_samples
from rlgaf_ray.data.storage import replace_text

def show(words):
    terminal = Terminal()
    terminal.on_message({ODD!a})
    metrics = {{"eval/f1": 50.0, "eval/f1_stderr": 1.0, "eval/two_sample_auc": 0.5}}
    config = load_config(None, ["run.name=x", "run.iterations=1"])
    terminal.on_end(Outcome(config, 1, 1, metrics, metrics, [{ODD!a}], [{ODD!a}]))
    folder = Path({str(tmp_path)!r})
    write_samples(folder / "samples.md", [{ODD!a}], [{ODD!a}], 1)
    save_samples(folder / "samples.jsonl", [{ODD!a}], [{ODD!a}])
    replace_text(folder / "config.yaml", {ODD!a})
    print({ODD!a})
    return 0

main.run = show
raise SystemExit(main.main([]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | variables, capture_output=True, check=False, cwd=PACKAGE.parent
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
    assert b"before caf" in done.stdout and b"after  caf" in done.stdout
    assert ODD in (tmp_path / "samples.md").read_text(encoding="utf-8")
    assert (tmp_path / "config.yaml").read_text(encoding="utf-8") == ODD
