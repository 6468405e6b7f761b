"""Actors that are lost in the middle of a run: it goes on, and ends as if nothing had happened."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.chaos.program import QUICK, SMALL, Run, lost, reached, runs

LOST = {"rollout/workers_replaced", "rollout/prompts_repeated", "recovery/rollbacks"}
SHARED = [*SMALL, "rollout.num_workers=2"]
ALLOWED_SECONDS = 40


@pytest.mark.slow
def test_both_workers_and_the_learner_are_killed(start, small_under, rows_of, record, tmp_path: Path) -> None:
    settings = [*SHARED, "run.iterations=24", "checkpoint.every=3"]
    run: Run = start(small_under(tmp_path, "run.name=hurt", *settings), tmp_path / "hurt")
    run.reaches(4)
    moment = run.hit(run.actors("RolloutWorker"))  # all at once
    detected = [run.says(f"rollout worker {index} died") - moment for index in range(2)]
    recovered = run.wait(lambda: run.replaced() == 2, "row that counts both workers") - moment
    workers = {"times": 2, "detected": detected, "recovered": [recovered]}
    killed = after_rollback(run, run.hit(run.actors("LearnerWorker")[:1]), "the learner died")
    run.ended(0)
    record("rollout workers, all at once: SIGKILL", **workers, lost=lost(run.folder))
    record("learner: SIGKILL", **killed, lost=lost(run.folder))
    assert killed["repeated"] <= 3

    whole = start(small_under(tmp_path, "run.name=whole", *settings), tmp_path / "whole")
    whole.ended(0)
    hurt, unhurt = rows_of(run.folder), rows_of(whole.folder)
    assert [without_losses(row) for row in hurt] == [without_losses(row) for row in unhurt]
    for name in ("generator", "discriminator"):
        one, other = (load_file(folder / name / "model.safetensors") for folder in (run.folder, whole.folder))
        assert all(bool((one[key] == other[key]).all()) for key in one | other), name


def test_one_loss_too_many_ends_the_run_with_a_checkpoint(start, small_under, record, tmp_path: Path) -> None:
    settings = [*SMALL, "run.iterations=2000", "checkpoint.every=3", "cluster.max_recoveries=0"]
    run = start(small_under(tmp_path, "run.name=hurt", *settings), tmp_path / "hurt")
    run.reaches(4)
    moment = run.hit(run.actors("RolloutWorker"))
    output = run.ended(1)
    (error,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "rollout worker" in error and "(cluster.max_recoveries)" in error
    latest = (run.folder / "checkpoints" / "latest").read_text().strip()
    missing = int(reached(run.folder)) - int(latest.removeprefix("step_"))
    assert f"the last checkpoint, {latest}, is intact" in error
    assert missing == 0 if "was saved" in output else missing <= 3
    detected = next(when for when, line in run.lines if line == error) - moment
    record("one loss more than allowed: SIGKILL", detected=[detected], lost=lost(run.folder))


def test_workers_that_fall_silent_are_replaced(start, small_under, record, tmp_path: Path) -> None:
    """One of two, then both at once."""
    settings = [*SHARED, "run.iterations=5000", f"cluster.timeout_seconds={ALLOWED_SECONDS}"]
    run = start(small_under(tmp_path, "run.name=hurt", *settings), tmp_path / "hurt")
    run.reaches(4)
    before = 0
    for how, number in (("one of two", 1), ("both at once", 2)):
        stopped = run.actors("RolloutWorker")[:number]
        moment = run.hit(stopped, signal.SIGSTOP)
        silent = rf"did not answer \w+ within {ALLOWED_SECONDS} s"
        detected = [run.says(silent, times=before + time) - moment for time in range(1, number + 1)]
        before += number
        recovered = run.wait(lambda before=before: run.replaced() == before, "row that counts them") - moment
        assert not any(map(runs, stopped))
        name = f"rollout workers, {how}: SIGSTOP, {ALLOWED_SECONDS} s allowed"
        record(name, times=number, detected=detected, recovered=[recovered], lost=lost(run.folder))
    run.process.send_signal(signal.SIGINT)
    run.ended(130)


@pytest.mark.parametrize(
    ("role", "process", "overrides"),
    [
        ("the discriminator", "DiscriminatorWorker", ()),
        ("rank . of the learner", "LearnerWorker", ("learner.num_workers=2",)),
    ],
    ids=["the discriminator", "one rank of the learner's group"],
)
def test_a_run_goes_back_to_its_checkpoint(
    start, small_under, record, tmp_path: Path, role: str, process: str, overrides: tuple[str, ...]
) -> None:
    settings = [*SMALL, *overrides, "run.iterations=2000", "checkpoint.every=3", "cluster.timeout_seconds=120"]
    run = start(small_under(tmp_path, "run.name=hurt", *settings), tmp_path / "hurt")
    run.reaches(5)
    back = after_rollback(run, run.hit(run.actors(process)[-1:]), f"{role} died")
    assert back["repeated"] <= 3
    run.process.send_signal(signal.SIGINT)
    run.ended(130)
    record(f"{role.replace('rank .', 'one rank of two')}: SIGKILL", **back, lost=lost(run.folder))


def test_a_learner_is_lost_while_the_run_comes_back_from_another_loss(
    start, small_under, record, tmp_path: Path
) -> None:
    settings = [*SMALL, "run.iterations=2000", "checkpoint.every=3"]
    run = start(small_under(tmp_path, "run.name=hurt", *settings), tmp_path / "hurt")
    run.reaches(4)
    first = run.hit(run.actors("LearnerWorker"))
    run.says("the learner died")
    run.wait(lambda: bool(run.processes("LearnerWorker")), "new learner")
    second = run.hit(run.processes("LearnerWorker"))
    detected = [run.says("the learner died", times=2) - second]
    recovered = run.wait(lambda: run.rollbacks() >= 2, "row after both") - first
    run.process.send_signal(signal.SIGINT)
    run.ended(130)
    record(
        "learner: SIGKILL, and its successor", times=2, detected=detected, recovered=[recovered], lost=lost(run.folder)
    )


def test_a_worker_with_an_engine_of_vllm_is_killed(start, small_under, record, tmp_path: Path) -> None:
    settings = [*QUICK, "run.iterations=2000", "rollout.engine=vllm"]
    run = start(small_under(tmp_path, "run.name=hurt", *settings), tmp_path / "hurt")
    run.reaches(3)
    moment = run.hit(run.actors("RolloutWorker")[:1])
    detected = run.says("rollout worker . died") - moment
    recovered = run.wait(lambda: run.replaced() == 1, "row that counts the worker") - moment
    run.process.send_signal(signal.SIGINT)
    run.ended(130)
    record("rollout worker of vLLM: SIGKILL", detected=[detected], recovered=[recovered], lost=lost(run.folder))


def after_rollback(run: Run, moment: float, line: str) -> dict:
    """What is told of a loss at this moment that takes the run back to its checkpoint, once it goes on."""
    detected = run.says(line) - moment
    repeated = run.repeated()
    recovered = run.wait(lambda: run.rollbacks() == 1, "row that counts the way back") - moment
    return {"detected": [detected], "recovered": [recovered], "repeated": repeated}


def without_losses(row: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name not in LOST}
