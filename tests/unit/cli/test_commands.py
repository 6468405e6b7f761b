"""The command line: help that fits a screen, options per command, arguments in any order."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from rlgaf_ray import __version__
from rlgaf_ray.cli.app import app
from rlgaf_ray.config.presets import presets
from rlgaf_ray.main import main

COMMANDS = ["train", "tune", "compare", "plan", "evaluate", "report", "sample", "runs", "diff", "doctor", "presets"]


def test_the_commands() -> None:
    assert list(app.commands) == COMMANDS


@pytest.mark.parametrize("words", [[], *([name] for name in COMMANDS)], ids=str)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_fits_a_screen(words: list[str], flag: str, capsys) -> None:
    assert main([*words, flag]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= (24 if words == ["train"] else 32) and max(map(len, lines)) <= 80
    assert lines[0].startswith(f"Usage: rlgaf {' '.join(words)}".rstrip())
    assert not [line for line in lines if line.endswith("...") and "Usage" not in line], "a help text is truncated"


def test_every_option_has_a_help(capsys) -> None:
    for command in app.commands.values():
        for option in command.params:
            assert not isinstance(option, click.Option) or option.help or option.name == "seed", option.name


def test_version(capsys) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"rlgaf {__version__}\n"


@pytest.mark.parametrize("module", ["rlgaf_ray", "rlgaf_ray.main"])
def test_the_package_runs_as_a_program(module: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, "plan", "--rating-sheet"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: rlgaf plan has no option --rating-sheet, but rlgaf report has (see rlgaf plan --help)\n"
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", "--smal"], "rlgaf train has no option --smal; did you mean --small? (see rlgaf train --help)"),
        (["--smal"], "rlgaf train has no option --smal; did you mean --small? (see rlgaf train --help)"),
        (["report", "runs/a", "--test"], "rlgaf report has no option --test, but rlgaf evaluate has (see rlgaf report "
         "--help)"),
        (["presets", "--out", "x"], "rlgaf presets has no option --out, but rlgaf evaluate and rlgaf report have (see "
         "rlgaf presets --help)"),
        (["presets", "--zzz"], "rlgaf presets has no option --zzz (see rlgaf presets --help)"),
        (["plan", "--nodes", "0"], "rlgaf plan: invalid value for '--nodes': 0 is not in the range x>=1; see rlgaf "
         "plan --help"),
        *((["plan", "--gpu-memory", number], f"rlgaf plan: invalid value for '--gpu-memory': {number} is not a "
         "positive number; see rlgaf plan --help") for number in ("-1", "0.0", "nan", "inf")),
        *((["sample", "run", "--temperature", number], f"rlgaf sample: invalid value for '--temperature': {number} "
         "is not a positive number; see rlgaf sample --help") for number in ("0", "nan", "inf")),
        (["plan", "--gpu-memory", "much"], "rlgaf plan: invalid value for '--gpu-memory': 'much' is not a valid float; "
         "see rlgaf plan --help"),
        (["plan", "--nodes"], "rlgaf plan: option '--nodes' requires an argument; see rlgaf plan --help"),
        (["sample"], "rlgaf sample: missing argument 'RUN'; see rlgaf sample --help"),
        (["diff", "a"], "rlgaf diff: missing argument 'B'; see rlgaf diff --help"),
        (["presets", "x"], "rlgaf presets: got unexpected extra argument (x); see rlgaf presets --help"),
        (["tune", "--log-level", "loud"], "rlgaf tune: invalid value for '--log-level': 'loud' is not one of 'debug', "
         "'info', 'warning', 'error'; see rlgaf tune --help"),
        (["imdb_postive"], "imdb_postive is not a command, preset, .yaml file or key=value; did you mean "
         "imdb_positive?"),
        (["evalute", "runs/x"], "evalute is not a command, preset, .yaml file or key=value; did you mean evaluate?"),
        (["qqqq"], "qqqq is not a command, preset, .yaml file or key=value; see rlgaf --help and rlgaf presets"),
        (["train", "evalute"], "evalute is not a preset, .yaml file or key=value; the presets are "
         f"{', '.join(presets())}"),
        (["compare", "bridge", "--other-versions"], "rlgaf compare has no option --other-versions, but rlgaf train and "
         "rlgaf tune have (see rlgaf compare --help)"),
        (["evaluate"], "evaluate needs a run folder: rlgaf evaluate runs/NAME [runs/OTHER ...]"),
    ],
)  # fmt: skip
def test_an_invalid_command_line_is_one_line(words: list[str], expected: str, capsys) -> None:
    assert main(words) == 2
    assert capsys.readouterr() == ("", f"error: {expected}\n")


def printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(words) == 0
    return capsys.readouterr().out


def test_options_files_and_overrides_may_be_mixed(capsys, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("run: {seed: 3}")
    words = ["imdb_positive", str(path), "--small", "run.iterations=5", "--print-config"]
    expected = printed(["train", *words], capsys)
    assert printed(words, capsys) == printed(["--small", "train", *words[:2], *words[3:]], capsys) == expected
    assert printed(["run.iterations=5", "--print-config", *words[:3]], capsys) == expected
    assert "seed: 3" in expected and "iterations: 5  # command line" in expected


@pytest.mark.parametrize("command", ["tune", "compare", "plan"])
def test_every_command_with_a_config_prints_it(command: str, capsys) -> None:
    space = ["sweep.space.generator.learning_rate.grid=[1e-4]"]
    assert "seed: 7  # command line" in printed([command, "run.seed=7", *space, "--print-config"], capsys)


def test_presets_are_listed_with_descriptions(capsys) -> None:
    lines = printed(["presets"], capsys).splitlines()
    assert [line.split()[0] for line in lines] == list(presets())
    assert all(len(line.split(maxsplit=1)[1]) > 20 for line in lines)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch):
    """Record the log level and the environment variable that a training sees."""
    monkeypatch.setattr("rlgaf_ray.doctor.complaint", lambda: None)
    for name in ("VLLM_LOGGING_LEVEL", "TRANSFORMERS_VERBOSITY"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    records: list[tuple[object, object]] = []

    class Outcome:
        interrupted = False

    def train(*arguments: object, **settings: object) -> Outcome:
        print("progress")
        print("a warning", file=sys.stderr)
        records.append((levels[-1] if levels else None, os.environ.get("VLLM_LOGGING_LEVEL")))
        return Outcome()

    levels: list[object] = []
    monkeypatch.setattr(logging, "basicConfig", lambda **settings: levels.append(settings["level"]))
    monkeypatch.setattr("rlgaf_ray.run.train.train", train)
    return records


@pytest.mark.parametrize(
    ("flags", "level", "quiet"),
    [
        ([], None, False),
        (["-q"], None, True),
        (["-v"], "INFO", False),
        (["-vv"], "DEBUG", False),
        (["--log-level", "warning"], "WARNING", False),
        (["-q", "--log-level=debug"], "DEBUG", True),
    ],
)
def test_verbosity(seen, flags: list[str], level: str | None, quiet: bool, capsys) -> None:
    assert main(["train", "rollout.engine=transformers", *flags]) == 0
    assert seen == [(level, level)]
    assert capsys.readouterr() == ("" if quiet else "progress\n", "a warning\n")
