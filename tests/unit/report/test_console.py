"""Console output with and without a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from rlgaf_ray.config import load_config
from rlgaf_ray.loop.outcome import Outcome
from rlgaf_ray.report import console as console_module
from rlgaf_ray.report.console import Terminal
from rlgaf_ray.training.warmup import WarmupProgress


def shown(is_terminal: bool) -> tuple[Terminal, io.StringIO]:
    output = io.StringIO()
    return Terminal(Console(file=output, force_terminal=is_terminal, width=120)), output


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(console_module.time, "perf_counter", lambda: now[0])
    return now


def test_a_wait_prints_two_lines_without_a_terminal(clock: list[float]) -> None:
    terminal, output = shown(False)
    with terminal.waiting("starting 1 rollout worker [vllm]"):
        assert output.getvalue() == "starting 1 rollout worker [vllm] ...\n"
        clock[0] += 41.2
    assert output.getvalue().splitlines()[1:] == ["starting 1 rollout worker [vllm]: done in 41 s"]


def test_a_short_wait_prints_one_line(clock: list[float]) -> None:
    terminal, output = shown(False)
    with terminal.waiting("preparing the judge"):
        clock[0] += 0.4
    assert output.getvalue() == "preparing the judge ...\n"


def test_a_wait_shows_a_spinner_in_a_terminal() -> None:
    terminal, output = shown(True)
    with terminal.waiting("starting [vllm]"):
        pass
    assert "starting [vllm]" in output.getvalue() and "0:00:00" in output.getvalue()


def test_a_failed_wait_is_not_reported_as_done(clock: list[float]) -> None:
    terminal, output = shown(False)
    with pytest.raises(ValueError, match=r"^$"), terminal.waiting("starting"):
        clock[0] += 5
        raise ValueError
    assert output.getvalue() == "starting ...\n"


def test_a_warm_up_prints_a_line_per_tenth_and_fold_without_a_terminal() -> None:
    terminal, output = shown(False)
    for fold in (1, 2):
        for step in range(0, 101, 25):  # no multiple of a tenth
            terminal.on_warmup("sft", WarmupProgress(step, 800, 4.0, 1000.0, f"fold {fold} of 2"))
    steps = [line.partition(":")[0] for line in output.getvalue().splitlines()]
    assert steps == [f"sft warm-up (fold {fold} of 2) {step}/800" for fold in (1, 2) for step in (0, 100)]


@pytest.mark.parametrize("is_terminal", [False, True])
def test_training_shows_the_wait_before_the_first_row(is_terminal: bool) -> None:
    terminal, output = shown(is_terminal)
    with terminal.training(start=0, total=10, first="evaluating the start on 40 prompts"):
        (task,) = terminal.progress.tasks
        assert task.fields["note"] == "evaluating the start on 40 prompts"
        terminal.on_iteration(0, {"eval/perplexity": 2.0})
        assert not is_terminal or task.fields["note"] == ""
    assert "evaluating the start on 40 prompts" in output.getvalue()


@pytest.mark.parametrize(("evaluated", "why"), [(0, ", before its first evaluation"), (25, "")])
def test_a_stopped_run_shows_the_iteration_that_was_evaluated(evaluated: int, why: str) -> None:
    terminal, output = shown(False)
    metrics = {"eval/f1": 50.0}
    last, after = (metrics, ["later"]) if evaluated else ({}, [])
    config = load_config(None, ["run.name=x", "run.iterations=75"])
    terminal.on_end(Outcome(config, 37, evaluated, metrics, last, ["earlier"], after))
    printed = output.getvalue()
    assert f"stopped after iteration 37{why}; continue with --resume" in printed
    assert ("before and after 25 iterations" in printed) == ("later" in printed) == bool(evaluated)
    assert ("earlier" in printed) == bool(evaluated) and "37 iterations" not in printed
