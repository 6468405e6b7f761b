"""Actors that fail during a run: the run recovers, with the same result as without the failure."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.chaos.program import QUICK, SMALL, Run, count_missing, reached, runs

RECOVERY_METRICS = {"rollout/workers_replaced", "rollout/prompts_repeated", "recovery/rollbacks"}
SHARED = [*SMALL, "rollout.num_workers=2"]
ALLOWED_SECONDS = 40


@pytest.mark.slow
def test_both_workers_and_the_learner_are_killed(start, small_under, rows_of, record, tmp_path: Path) -> None:
    settings = [*SHARED, "run.iterations=24", "checkpoint.every=3"]
    run: Run = start(small_under(tmp_path, "run.name=hurt", *settings), tmp_path / "hurt")
    run.reaches(4)
    moment = run.hit(run.actors("RolloutWorker"))  # both at once
    detected = [run.prints(f"rollout worker {index} died") - moment for index in range(2)]
    recovered = run.wait(lambda: run.replaced() == 2, "row that counts both workers") - moment
    workers = {"times": 2, "detected": detected, "recovered": [recovered]}
    killed = after_rollback(run, run.hit(run.actors("LearnerWorker")[:1]), "the learner died")
    run.ended(0)
    record("rollout workers, both at once: SIGKILL", **workers, missing=count_missing(run.folder))
    record("learner: SIGKILL", **killed, missing=count_missing(run.folder))
    assert killed["repeated"] <= 3

    reference = start(small_under(tmp_path, "run.name=reference", *settings), tmp_path / "reference")
    reference.ended(0)
    rows, expected = rows_of(run.folder), rows_of(reference.folder)
    assert [without_recovery(row) for row in rows] == [without_recovery(row) for row in expected]
    for name in ("generator", "discriminator"):
        one, other = (load_file(folder / name / "model.safetensors") for folder in (run.folder, reference.folder))
        assert all(bool((one[key] == other[key]).all()) for key in one | other), name


def test_too_many_failures_end_the_run_with_a_checkpoint(start, small_under, record, tmp_path: Path) -> None:
    settings = [*SMALL, "run.iterations=2000", "checkpoint.every=3", "cluster.max_recoveries=0"]
    run = start(small_under(tmp_path, "run.name=hurt", *settings), tmp_path / "hurt")
    run.reaches(4)
    moment = run.hit(run.actors("RolloutWorker"))
    output = run.ended(1)
    (error,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "rollout worker" in error and "(cluster.max_recoveries)" in error
    latest = (run.folder / "checkpoints" / "latest").read_text().strip()
    unsaved = int(reached(run.folder)) - int(latest.removeprefix("step_"))
    assert f"the last checkpoint, {latest}, is intact" in error
    assert unsaved == 0 if "was saved" in output else unsaved <= 3
    detected = next(when for when, line in run.lines if line == error) - moment
    record("one failure more than allowed: SIGKILL", detected=[detected], missing=count_missing(run.folder))


def test_hanging_workers_are_replaced(start, small_under, record, tmp_path: Path) -> None:
    """First one of two workers, then both at once."""
    settings = [*SHARED, "run.iterations=5000", f"cluster.timeout_seconds={ALLOWED_SECONDS}"]
    run = start(small_under(tmp_path, "run.name=hurt", *settings), tmp_path / "hurt")
    run.reaches(4)
    before = 0
    for how, number in (("one of two", 1), ("both at once", 2)):
        stopped = run.actors("RolloutWorker")[:number]
        moment = run.hit(stopped, signal.SIGSTOP)
        timeout = rf"did not answer \w+ within {ALLOWED_SECONDS} s"
        detected = [run.prints(timeout, times=before + time) - moment for time in range(1, number + 1)]
        before += number
        recovered = run.wait(lambda before=before: run.replaced() == before, "row that counts them") - moment
        assert not any(map(runs, stopped))
        name = f"rollout workers, {how}: SIGSTOP, {ALLOWED_SECONDS} s allowed"
        record(name, times=number, detected=detected, recovered=[recovered], missing=count_missing(run.folder))
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
def test_a_learner_or_discriminator_failure_rolls_back(
    start, small_under, record, tmp_path: Path, role: str, process: str, overrides: tuple[str, ...]
) -> None:
    settings = [*SMALL, *overrides, "run.iterations=2000", "checkpoint.every=3", "cluster.timeout_seconds=120"]
    run = start(small_under(tmp_path, "run.name=hurt", *settings), tmp_path / "hurt")
    run.reaches(5)
    rollback = after_rollback(run, run.hit(run.actors(process)[-1:]), f"{role} died")
    assert rollback["repeated"] <= 3
    run.process.send_signal(signal.SIGINT)
    run.ended(130)
    record(f"{role.replace('rank .', 'one rank of two')}: SIGKILL", **rollback, missing=count_missing(run.folder))


def test_the_learner_fails_again_during_recovery(start, small_under, record, tmp_path: Path) -> None:
    settings = [*SMALL, "run.iterations=2000", "checkpoint.every=3"]
    run = start(small_under(tmp_path, "run.name=hurt", *settings), tmp_path / "hurt")
    run.reaches(4)
    first = run.hit(run.actors("LearnerWorker"))
    run.prints("the learner died")
    run.wait(lambda: bool(run.processes("LearnerWorker")), "new learner")
    second = run.hit(run.processes("LearnerWorker"))
    detected = [run.prints("the learner died", times=2) - second]
    recovered = run.wait(lambda: run.rollbacks() >= 2, "row after both") - first
    run.process.send_signal(signal.SIGINT)
    run.ended(130)
    record(
        "learner: SIGKILL, and its replacement",
        times=2,
        detected=detected,
        recovered=[recovered],
        missing=count_missing(run.folder),
    )


def test_a_vllm_worker_is_killed(start, small_under, record, tmp_path: Path) -> None:
    settings = [*QUICK, "run.iterations=2000", "rollout.engine=vllm"]
    run = start(small_under(tmp_path, "run.name=hurt", *settings), tmp_path / "hurt")
    run.reaches(3)
    moment = run.hit(run.actors("RolloutWorker")[:1])
    detected = run.prints("rollout worker . died") - moment
    recovered = run.wait(lambda: run.replaced() == 1, "row that counts the worker") - moment
    run.process.send_signal(signal.SIGINT)
    run.ended(130)
    record(
        "rollout worker of vLLM: SIGKILL", detected=[detected], recovered=[recovered], missing=count_missing(run.folder)
    )


def after_rollback(run: Run, moment: float, line: str) -> dict:
    """Time the rollback after a failure at this moment; returns the arguments for ``record``."""
    detected = run.prints(line) - moment
    repeated = run.repeated()
    recovered = run.wait(lambda: run.rollbacks() == 1, "row that counts the rollback") - moment
    return {"detected": [detected], "recovered": [recovered], "repeated": repeated}


def without_recovery(row: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name not in RECOVERY_METRICS}
