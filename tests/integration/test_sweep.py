"""Sweeps as a user runs them: real Ray Tune, the transformers engine, a tiny model on real reviews."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlgaf_ray.actors.cluster import ray_session
from rlgaf_ray.actors.warmup import prepare_warmups
from rlgaf_ray.config import Config, load_config, with_values
from rlgaf_ray.evaluation.score import WORST, sweep_score
from rlgaf_ray.loop.adversarial import AdversarialLoop
from rlgaf_ray.main import main
from rlgaf_ray.run.preparation import Prepared, prepare_data
from rlgaf_ray.run.session import local_roles, open_loop
from rlgaf_ray.sweep.history import TRIAL, History, TrialCheckpoints
from tests.patience import wait_until

SHORT = ["tune", "run.iterations=2", "evaluation.every=1", "rollout.engine=transformers", "tracking.to=[]"]
RATES = "sweep.space.generator.learning_rate.grid="


def rows(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(small_under, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two trials: one that trains, and one whose steps are so long that the guard stops it."""
    root = tmp_path_factory.mktemp("runs")
    overrides = [*small_under(root, "run.name=two"), *SHORT[1:], "run.iterations=3", "sweep.scheduler=none"]
    assert main(["tune", *overrides, f"{RATES}[1e-4, 1e38]"]) == 0
    return root / "two"


@pytest.mark.slow
def test_every_trial_is_a_whole_run_and_the_guards_stop_is_the_worst_score(finished: Path) -> None:
    good, bad = sorted(
        (finished / "trials").iterdir(), key=lambda folder: load_config(folder / "config.yaml").generator.learning_rate
    )
    evaluations = [(int(row["iteration"]), row) for row in rows(good / "metrics.jsonl")]
    assert [iteration for iteration, _ in evaluations] == [0, 1, 2, 3]
    (*_, last) = reports = rows(good / "reports.jsonl")
    assert [report["iteration"] for report in reports] == [1, 2, 3]
    assert last["sweep/score"] == pytest.approx(sweep_score(evaluations, "eval/closeness"))
    assert (good / "generator" / "model.safetensors").is_file()
    stopped = rows(bad / "reports.jsonl")[-1]
    assert stopped["sweep/score"] == WORST and "non_finite" in str(stopped["stopped"])
    page = (finished / "sweep.html").read_text()
    assert "stopped by the guard" in page and "finished" in page and page.count("<svg") == 5


@pytest.mark.slow
def test_the_best_config_trains_the_best_trial_alone(finished: Path) -> None:
    best = load_config(finished / "best.yaml")
    assert best.generator.learning_rate == 1e-4
    assert (best.run.name, best.run.iterations, best.sweep) == ("two-best", 3, Config().sweep)


@pytest.mark.slow
def test_a_sweep_is_not_begun_twice_nor_resumed_with_another_space(finished: Path, capsys) -> None:
    begun = [f"run.root={finished.parent}", "run.name=two"]
    assert main(["tune", *begun, f"{RATES}[1e-3]", "sweep.scheduler=none", "rollout.engine=transformers"]) == 1
    assert "exists: add --resume to continue that sweep" in capsys.readouterr().err
    assert main(["tune", *begun, f"{RATES}[1e-3]", "--resume"]) == 1
    assert "was started with a different config: a resumed sweep may change cluster.* only" in capsys.readouterr().err


@pytest.mark.slow
def test_a_metric_that_is_never_logged_ends_the_sweep_at_the_first_evaluation(small, tmp_path: Path, capsys) -> None:
    overrides = [*small("run.name=x"), *SHORT[1:], f"{RATES}[1e-4, 1e-3]", "sweep.metric=eval/closenes"]
    assert main(["tune", *overrides, "sweep.scheduler=none"]) == 1
    assert capsys.readouterr().err.strip().splitlines()[-1] == (
        "error: no trial of 2 finished; the first error: sweep.metric=eval/closenes is never logged by these runs; "
        "did you mean eval/closeness?"
    )
    (trial,) = (tmp_path / "x" / "trials").iterdir()
    assert len(rows(trial / "metrics.jsonl")) == 1


@pytest.mark.slow
def test_a_sweep_whose_trials_all_failed_shows_the_first_error(small, capsys) -> None:
    overrides = [*small("run.name=x"), *SHORT[1:], f"{RATES}[1e-4]", "sweep.scheduler=none"]
    assert main(["tune", *overrides, "cluster.timeout_seconds=0.01"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: no trial of 1 finished; the first error: the learner did not answer __ray_ready__")


@pytest.mark.slow
def test_a_killed_driver_goes_on_and_no_finished_trial_runs_again(small, tmp_path: Path) -> None:
    overrides = [*small("run.name=cut"), *SHORT[1:], "run.iterations=4", "sweep.scheduler=none"]
    overrides += [f"{RATES}[1e-4, 2e-4]", "learner.precision=float32"]
    process = subprocess.Popen(
        [sys.executable, "-m", "rlgaf_ray.main", "tune", *overrides],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    trials = tmp_path / "cut" / "trials"

    def second_began() -> bool:
        return bool(list(trials.glob("*/ended.json"))) and len(list(trials.glob("*/reports.jsonl"))) == 2

    try:
        wait_until(second_began, "second trial", process=process, pause=0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    (first,) = [path.parent for path in trials.glob("*/ended.json")]
    (second,) = [path.parent for path in trials.glob("*/reports.jsonl") if path.parent != first]
    before = {name: (first / name).stat().st_mtime_ns for name in ("metrics.jsonl", "reports.jsonl", "ended.json")}
    told = len(rows(second / "reports.jsonl"))
    assert 1 <= told < 4
    assert main(["tune", f"run.root={tmp_path}", "run.name=cut", "--resume"]) == 0
    assert before == {name: (first / name).stat().st_mtime_ns for name in before}
    assert sorted(trials.iterdir()) == sorted([first, second])
    assert [row["iteration"] for row in rows(second / "metrics.jsonl")] == [0, 1, 2, 3, 4]
    iterations = [row["iteration"] for row in rows(second / "reports.jsonl")]
    assert iterations[told:] == list(range(int(iterations[told]), 5))
    assert iterations[told] in (told, told + 1), "it went on from its own last checkpoint"


def test_an_exploit_copies_generator_discriminator_and_both_optimisers(
    small_config, cache: Path, tmp_path: Path
) -> None:
    """The donor's checkpoint, taken over by a trial with other values, against the networks then in memory."""
    torch.set_num_threads(1)
    rates = ["discriminator.updates_per_generator_update=1", "generator.learning_rate=1e-3"]
    config = small_config(*SHORT[1:], *rates, "warmup.discriminator.steps=0")
    data = prepare_data(config, cache)
    with ray_session(config):
        warmups = prepare_warmups(config, data.task, data.tokenizer, cache, lambda name, progress: None)

    loops = ExitStack()

    def trial(name: str, config: Config) -> tuple[AdversarialLoop, TrialCheckpoints]:
        history = History(name, metric="sweep/score", mode="max", quality="eval/closeness")
        checkpoints = TrialCheckpoints(tmp_path / name / "checkpoints", history)
        prepared = Prepared(with_values(config, {"run.name": name}), data, warmups)
        loop = open_loop(prepared, local_roles(prepared), checkpoints, [history])
        return loops.enter_context(loop), checkpoints

    donor, theirs = trial("donor", config)
    donor.run()
    source = theirs.named("latest")
    assert isinstance(source, Path)
    changed = config.model_copy(update={"generator": config.generator.model_copy(update={"learning_rate": 1e-5})})
    taker, ours = trial("taker", changed)
    assert ours.copy_from(source) == "donor"
    path, state, _ = ours.newest_usable()
    taker.resume(path, state)

    for ours_now, theirs_now in (
        (taker.roles.learner.policy.model, donor.roles.learner.policy.model),  # type: ignore[attr-defined]
        (taker.roles.discriminator.model, donor.roles.discriminator.model),  # type: ignore[attr-defined]
    ):
        expected = theirs_now.state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in ours_now.state_dict().items())
    warmed = load_file(Path(warmups.generator) / "model.safetensors")
    moved = dict(taker.roles.learner.policy.model.named_parameters())  # type: ignore[attr-defined]
    assert any(not torch.equal(tensor, moved[name]) for name, tensor in warmed.items() if name in moved)
    for name in ("learner/optimizer.safetensors", "discriminator/optimizer.safetensors", TRIAL):
        assert (path / name).read_bytes() == (source / name).read_bytes()
    assert taker.train_step.discriminator_version == donor.train_step.discriminator_version == 2
    assert taker.config.generator.learning_rate == 1e-5
    loops.close()


@pytest.mark.slow
def test_population_based_training_goes_on_from_the_better_trial(small, tmp_path: Path) -> None:
    """The trial with the higher learning rate is "better" here, so that the one that stands still takes it over."""
    overrides = [*small("run.name=pbt"), *SHORT[1:], "run.iterations=4", "generator.learning_rate_schedule=constant"]
    overrides += ["sweep={scheduler: pbt, grace: 1, pbt: {every: 2, quantile: 0.5}}"]
    overrides += [f"{RATES}[1e-12, 1e-3]", "sweep.metric=generator/learning_rate"]
    assert main(["tune", *overrides]) == 0
    (exploits,) = (tmp_path / "pbt" / "trials").glob("*/exploits.jsonl")
    exploit = rows(exploits)[0]
    assert exploit["from"] != exploits.parent.name
    kl = {row["iteration"]: row["generator/kl"] for row in rows(exploits.parent / "metrics.jsonl")[1:]}
    assert kl[exploit["iteration"]] == pytest.approx(0, abs=1e-6)  # its own policy had not moved
    assert abs(kl[exploit["iteration"] + 1]) > 1e-6  # the donor's had
