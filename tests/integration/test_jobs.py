"""``ray job submit -- python -m rlgaf_ray.main`` against a local head with token authentication."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.patience import wait_until

RAY = str(Path(sys.executable).with_name("ray"))
REPOSITORY = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment of a client of a head that runs on this machine; the head ends with the module."""
    port, dashboard, agent = free_port(), free_port(), free_port()  # of its own: another Ray may run beside it
    home = tmp_path_factory.mktemp("home")
    environment = {
        **os.environ,
        "HOME": str(home),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "a-token-of-this-test-" + "0" * 32,
        "RAY_TMPDIR": "/tmp",
        "PYTHONPATH": str(REPOSITORY),
        # a job's shell finds `python` there, as in the image of cluster/Dockerfile
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = [RAY, "start", "--head", "--block", "--port", str(port), "--dashboard-port", str(dashboard)]
    command += ["--dashboard-agent-listen-port", str(agent)]
    command += ["--node-ip-address", "127.0.0.1", "--dashboard-host", "127.0.0.1", "--num-cpus", "2"]
    log = (home / "head.log").open("w")
    process = subprocess.Popen([*command, "--disable-usage-stats"], env=environment, stdout=log, stderr=log)
    environment["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
    environment["RAY_GCS"] = f"127.0.0.1:{port}"
    answers = f"answer of the head, whose log is {home}/head.log"
    wait_until(lambda: ray_job(environment, "list").returncode == 0, answers, process=process, pause=1)
    yield environment
    process.send_signal(signal.SIGTERM)
    process.wait()
    shutil.rmtree(home, ignore_errors=True)


def ray_job(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([RAY, "job", *arguments], env=environment, capture_output=True, text=True, cwd="/")


def test_without_the_token_nobody_gets_in(head: dict[str, str]) -> None:
    refused = ray_job({**head, "RAY_AUTH_TOKEN": "another-token-" + "1" * 32}, "list")
    assert refused.returncode != 0


@pytest.mark.slow
def test_a_job_succeeds_and_its_run_folder_is_complete(head: dict[str, str], small, tmp_path: Path) -> None:
    entrypoint = [sys.executable, "-m", "rlgaf_ray.main", *small("run.name=job", "rollout.engine=transformers")]
    submitted = ray_job(head, "submit", "--submission-id", "good", "--", *entrypoint)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert status(head, "good") == "SUCCEEDED"
    rows = (tmp_path / "job" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["iteration"] == 8
    for name in ("config.yaml", "data.json", "samples.md", "generator/model.safetensors", "checkpoints/latest"):
        assert (tmp_path / "job" / name).is_file(), name


@pytest.mark.slow
def test_the_entrypoint_of_the_kubernetes_job_succeeds_as_it_is_written(head: dict[str, str], small, tmp_path) -> None:
    job = yaml.safe_load((REPOSITORY / "cluster/rayjob.yaml").read_text())["spec"]
    environment = yaml.safe_load(job["runtimeEnvYAML"])
    # What the manifest says may be changed: to this machine's size, without GPUs and without /shared.
    changes = ["rollout.engine=transformers", "cluster.gpus_per_actor=0", "cluster.placement=auto", "run.iterations=2"]
    changes += ["cluster.join_seconds=0", "learner.num_workers=1", "rollout.num_workers=1", "evaluation.every=0"]
    environment["env_vars"]["RLGAF_OVERRIDES"] += " " + " ".join(one_word_each([*small(), *changes]))
    # The submitter's pod puts the entrypoint into a line of its shell, as it stands.
    options = f"--submission-id manifest --runtime-env-json {shlex.quote(json.dumps(environment))}"
    submitted = subprocess.run(
        ["bash", "-c", f"{RAY} job submit {options} -- {job['entrypoint']}"],
        env=head, capture_output=True, text=True, cwd="/",
    )  # fmt: skip
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert status(head, "manifest") == "SUCCEEDED"
    assert (tmp_path / "job/generator/config.json").is_file()


def one_word_each(overrides: list[str]) -> list[str]:
    """Overrides without spaces: a mapping becomes a dotted key for each of its entries."""
    words = []
    for key, value in (item.split("=", 1) for item in overrides):
        parsed = yaml.safe_load(value)
        words += (
            [f"{key}.{name}={inner}" for name, inner in parsed.items()]
            if isinstance(parsed, dict)
            else [f"{key}={value}"]
        )
    return words


def test_a_wrong_config_fails_the_job_with_its_exit_code(head: dict[str, str], small) -> None:
    entrypoint = [sys.executable, "-m", "rlgaf_ray.main", *small("run.name=bad", "generator.learning_rat=1")]
    submitted = ray_job(head, "submit", "--submission-id", "bad", "--", *entrypoint)
    assert submitted.returncode != 0
    said = submitted.stdout + submitted.stderr
    assert "did you mean generator.learning_rate?" in said
    assert "exit code 2" in said


@pytest.mark.slow
def test_a_stopped_job_leaves_no_actor_behind(head: dict[str, str], small, tmp_path: Path) -> None:
    settings = small("run.name=stopped", "rollout.engine=transformers", "run.iterations=5000", "evaluation.every=0")
    entrypoint = [sys.executable, "-m", "rlgaf_ray.main", *settings]
    assert ray_job(head, "submit", "--no-wait", "--submission-id", "long", "--", *entrypoint).returncode == 0
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    wait_until(lambda: metrics.is_file() and len(metrics.read_text().splitlines()) > 5, "training of the job")
    assert len(alive_actors(head)) >= 3
    ray_job(head, "stop", "long")
    wait_until(lambda: status(head, "long") == "STOPPED", "end of the job")
    wait_until(lambda: not alive_actors(head), "end of its actors")
    assert (tmp_path / "stopped/checkpoints/latest").is_file()


def status(head: dict[str, str], job: str) -> str:
    """The job's status as the API names it: RUNNING, SUCCEEDED, STOPPED, FAILED."""
    query = (
        "import sys, ray.job_submission as jobs; print(jobs.JobSubmissionClient().get_job_status(sys.argv[1]).value)"
    )
    command = [sys.executable, "-c", query, job]
    result = subprocess.run(command, env=head, capture_output=True, text=True, check=True)
    return result.stdout.split()[-1]


def alive_actors(head: dict[str, str]) -> list[str]:
    """Class names of living actors, without the job's own supervisor."""
    query = (
        "import ray, json; from ray.util.state import list_actors; ray.init(logging_level='ERROR'); "
        "print(json.dumps([a.class_name for a in list_actors(filters=[('state', '=', 'ALIVE')])]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", query],
        env={**head, "RAY_ADDRESS": head["RAY_GCS"]},
        capture_output=True,
        text=True,
        check=True,
    )
    names = json.loads(result.stdout.splitlines()[-1])
    return [name for name in names if "Supervisor" not in name]
