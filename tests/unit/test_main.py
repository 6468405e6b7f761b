"""Exit codes and errors of the command line: one line for user errors, a traceback for bugs."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlgaf_ray.actors.answers import ActorFailure
from rlgaf_ray.config import ConfigError
from rlgaf_ray.data.remote import StorageRefused
from rlgaf_ray.errors import UserError
from rlgaf_ray.main import BUG, main
from rlgaf_ray.run import signals
from rlgaf_ray.run.signals import Stop, stop_on_signals


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run a training that raises the error; return the exit code and the lines of stderr."""

    def run(error: Exception) -> tuple[int, list[str]]:
        def failing(*arguments: object, **settings: object) -> None:
            raise error

        monkeypatch.setattr("rlgaf_ray.run.train.train", failing)
        code = main(["rollout.engine=transformers"])
        return code, capsys.readouterr().err.splitlines()

    return run


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("no room\nfor s3://KEY:SECRET@bucket/x"), 1),
        (ActorFailure("the learner died"), 1),
        (ConfigError("run.seed=-1: must be at least 0"), 2),
        (StorageRefused("no bucket"), 2),
    ],
)
def test_a_user_error_is_one_line(ended, error: UserError, code: int) -> None:
    found, lines = ended(error)
    assert found == code and len(lines) == 1
    assert lines[0].startswith("error: ") and "SECRET" not in lines[0]


def test_other_versions_are_accepted_by_a_flag(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[dict[str, object]] = []

    def train(config: object, **options: object) -> object:
        calls.append(options)
        return SimpleNamespace(interrupted=False)

    monkeypatch.setattr("rlgaf_ray.run.train.train", train)
    path = tmp_path / "config.yaml"
    path.write_text("rollout: {engine: transformers}")
    assert main([str(path), "--resume"]) == main([str(path), "--resume", "--other-versions"]) == 0
    assert [options["other_versions"] for options in calls] == [False, True]
    assert main([str(path), "--other-versions"]) == 2
    assert capsys.readouterr().err == "error: --other-versions has no effect without --resume: add --resume\n"


@pytest.mark.parametrize("kind", [ValueError, KeyError, AssertionError])
def test_a_bug_prints_a_traceback_and_asks_for_a_report(ended, kind: type[Exception]) -> None:
    code, lines = ended(kind("s3://KEY:SECRET@bucket/x"))
    assert code == 1 and lines[0] == "Traceback (most recent call last):"
    assert any("in failing" in line for line in lines)
    assert lines[-2].startswith(kind.__name__) and lines[-1] == f"error: {BUG}"
    assert "SECRET" not in "\n".join(lines)


def test_a_reward_functions_code_is_announced_before_it_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    function = tmp_path / "my_rewards.py"
    function.write_text("raise RuntimeError('it ran')")
    words = [f"reward.functions=[{{path: '{function}:short'}}]", f"run.root={tmp_path / 'runs'}"]
    assert main(["rollout.engine=transformers", *words]) == 1
    announced, failed = capsys.readouterr().err.splitlines()
    assert announced == f"reward.functions={function}:short: its Python code will run"
    assert failed == f"error: reward.functions: {function} cannot be imported: RuntimeError: it ran"
    assert not (tmp_path / "runs").exists()


def test_a_second_signal_kills_the_process_unless_it_is_the_same_one_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """``timeout`` sends SIGTERM to the process, then to its group."""
    clock = iter([5.0, 5.001, 6.5])
    monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    exits: list[int] = []
    monkeypatch.setattr(signals.os, "_exit", exits.append)
    stopped: list[int] = []
    with stop_on_signals(stopped.append):
        for expected in ([], [], [143]):
            signal.raise_signal(signal.SIGTERM)
            assert exits == expected
    assert stopped == [signal.SIGTERM]


def test_a_signal_stops_immediately_before_the_loop_and_gracefully_in_it() -> None:
    before = signal.getsignal(signal.SIGTERM)
    stop = Stop()
    with pytest.raises(SystemExit) as caught, stop_on_signals(stop):
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.code == stop.exit_code == 143

    stop = Stop()
    with stop_on_signals(stop), stop.training(start=0, total=1, first="x"):
        assert not stop.stop_requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.stop_requested
    assert signal.getsignal(signal.SIGTERM) is before

    stop = Stop()
    with pytest.raises(SystemExit), stop_on_signals(stop):
        with pytest.raises(ActorFailure), stop.training(start=0, total=1, first="x"):
            raise ActorFailure("the learner died")
        os.kill(os.getpid(), signal.SIGTERM)  # between two attempts: nothing can be saved
