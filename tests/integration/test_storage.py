"""Runs in an object store: moto's S3 server on loopback, reached through pyarrow as any other."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from rlgaf_ray.config import load_config
from rlgaf_ray.data.handover import saves_to_storage
from rlgaf_ray.data.remote import Remote
from rlgaf_ray.loop.callback import Callback
from rlgaf_ray.loop.checkpoint import Checkpoints
from rlgaf_ray.loop.outcome import Outcome
from rlgaf_ray.main import main
from rlgaf_ray.run.train import train
from tests.moto_server import KEY, SECRET, moto_server, needs_moto
from tests.patience import wait_until

REPOSITORY = Path(__file__).parents[2]

pytestmark = needs_moto


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The options of a URI that lead to the server. Nobody answers at the proxy that the environment names."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            patch.setenv(name, "http://127.0.0.1:9")
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("on_the_way")))
        with moto_server(tmp_path_factory.mktemp("moto") / "log") as (_, options):
            yield options


@pytest.fixture
def bucket(server: str, request: pytest.FixtureRequest) -> str:
    """The URI of a prefix in a bucket of this test's own, and its options apart."""
    name = "b-" + str(abs(hash(request.node.nodeid)))
    return f"s3://{KEY}:{SECRET}@{name}/runs?{server}&allow_bucket_creation=true"


def test_what_cannot_be_used_is_refused_before_anything_starts(server: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr("rlgaf_ray.run.train.prepare_data", None)  # would be the next to be called
    words = ["rollout.engine=transformers", "run.name=x"]
    root = f"s3://{KEY}:{SECRET}@nobody-made-it/runs"
    assert main([f"run.root={root}?{server}", *words]) == 2
    assert capsys.readouterr().err == (
        f"error: s3://nobody-made-it/runs?{server}: bucket nobody-made-it does not exist; create it, or add "
        "allow_bucket_creation=true behind the '?'\n"
    )
    monkeypatch.setattr("rlgaf_ray.data.remote.CHECK_SECONDS", 0.5)
    assert main([f"run.root={root}?scheme=http&region=x&endpoint_override=127.0.0.1:9", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "error: s3://nobody-made-it/runs?scheme=http&region=x&endpoint_override=127.0.0.1:9 cannot be"
    )
    assert "NETWORK_CONNECTION" in line and SECRET not in line
    assert main(["report", f"{root}/x?{server}"]) == 2
    assert SECRET not in capsys.readouterr().err


def wait_for_line(process: subprocess.Popen[str], wanted: str) -> None:
    assert process.stdout is not None
    assert any(line == wanted for line in process.stdout), f"the program ended with {process.wait()}"


class Network:
    def __init__(self, text: str) -> None:
        self.text = text

    @saves_to_storage
    def save(self, folder: Path) -> None:
        (folder / "weights").write_text(self.text)
        (folder / "optimizer").write_text(self.text)


KILLED = """
import sys, time
from rlgaf_ray.data.remote import Remote
from rlgaf_ray.loop.callback import Callback
from rlgaf_ray.loop.checkpoint import Checkpoints
from rlgaf_ray.loop.outcome import Outcome

def write(folder):
    (folder / "learner" / "weights").write_text("half of it")
    print("half", flush=True)
    time.sleep(600)

Checkpoints(Remote(sys.argv[1]), keep=2).save(2, write, {"iteration": 2}, best=True)
"""


def test_a_killed_upload_leaves_the_checkpoint_before(bucket: str) -> None:
    root = Remote(bucket)
    root.check()
    folder = root / "one" / "checkpoints"
    checkpoints = Checkpoints(folder, keep=2)

    def save(iteration: int, **settings: bool) -> None:
        text = f"weights of {iteration}"
        checkpoints.save(
            iteration,
            lambda place: Network(text).save(place / "learner"),
            {"iteration": iteration},
            best=False,
            **settings,
        )

    save(1)
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, folder.uri], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    wait_for_line(process, "half\n")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "step_000002/learner/weights" in folder.files()
    assert checkpoints.all() == [folder / "step_000001"] == [checkpoints.named("latest")]
    assert checkpoints.named("best") is None
    path, state, damage = checkpoints.newest_usable()
    assert (path.name, state, damage) == ("step_000001", {"iteration": 1}, [])

    save(2)
    save(3)
    assert [path.name for path in checkpoints.all()] == ["step_000002", "step_000003"]
    assert not any(name.startswith("step_000001") for name in folder.files())
    save(3)  # after a rollback: beside the one that is there, which then goes
    assert [path.name for path in checkpoints.all()] == ["step_000002", "step_000003-1"]
    assert checkpoints.named("latest") == folder / "step_000003-1"
    (folder / "step_000003-1" / "learner" / "weights").write_text("weights of 4")
    path, state, found = checkpoints.newest_usable()
    (damaged,) = found
    assert (path.name, state) == ("step_000002", {"iteration": 2})
    assert damaged.endswith("learner/weights is corrupted (checksum mismatch)")
    assert KEY not in damaged and SECRET not in damaged


class HangAt(Callback):
    """Says when an iteration is over, and waits there to be killed."""

    def __init__(self, last: int | None) -> None:
        self.last = last

    def on_iteration(self, iteration: int, metrics: dict[str, float]) -> None:
        if iteration == self.last:
            print("hangs", flush=True)
            time.sleep(600)


def train_here(words: Sequence[str], *, resume: bool = False, hang_at: int | None = None) -> Outcome:
    torch.set_num_threads(1)
    return train(load_config(None, words), resume=resume, callbacks=[HangAt(hang_at)], roles="local")


CHILD = "import sys; from tests.integration.test_storage import train_here; train_here(sys.argv[1:], hang_at=5)"


@pytest.mark.slow
def test_a_run_is_killed_resumed_and_reported(bucket: str, rows_of, tmp_path: Path, capsys) -> None:
    pairs = [{"prompt": f"what is {n} and {n}?", "response": f"it is {2 * n}, of course"} for n in range(150)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    words = [
        "run.name=cut",
        "run.iterations=6",
        "model.generator=tiny-gpt2",
        "task.name=jsonl",
        f"task.jsonl.path={tmp_path}/pairs.jsonl",
        "task.prompt_tokens=16",
        "task.response_tokens=8",
        f"warmup.cache={tmp_path}/cache",
        "rollout.engine=transformers",
        "rollout.batch_size=8",
        "discriminator.batch_size=8",
        "learner.precision=float32",
        "evaluation.num_prompts=10",
        "evaluation.num_samples=2",
        "evaluation.every=0",
        "checkpoint.every=2",
        "warmup.generator.steps=1",
        "warmup.sft.steps=0",
    ]
    train_here([*words, f"run.root={tmp_path}/here"])

    command = [sys.executable, "-c", CHILD, *words, f"run.root={bucket}"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, env=environment)
    wait_for_line(process, "hangs\n")
    process.send_signal(signal.SIGKILL)
    process.wait()
    folder = Remote(bucket) / "cut"
    assert (folder / "checkpoints" / "latest").read_text() == "step_000004\n"
    on_the_way = load_config(None, [*words, f"run.root={bucket}"]).run.folder
    shutil.rmtree(on_the_way)  # it goes on from another machine

    outcome = train_here([*words, f"run.root={bucket}"], resume=True)
    assert not on_the_way.exists()
    assert outcome.folder == folder and outcome.iteration == 6 and not outcome.interrupted
    exported = load((folder / "generator" / "model.safetensors").read_bytes())
    state = outcome.generator().state_dict()  # fetched from the storage
    assert all(torch.equal(state[name], tensor) for name, tensor in exported.items())
    assert outcome.tokenizer().decode(outcome.tokenizer().encode("it is 2")) == "it is 2"
    assert main(["report", folder.uri]) == 0
    shown = str(folder / "report.html")
    assert capsys.readouterr().out == f"{shown}\n" and SECRET not in shown

    there, here = tmp_path / "there", tmp_path / "here" / "cut"
    folder.download(there)
    assert rows_of(there) == rows_of(here)
    names = {path.relative_to(here).as_posix() for path in here.rglob("*") if path.is_file()}
    stored = {path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file()}
    assert names - {name for name in names if "events" in name} <= stored
    for name in ("generator/model.safetensors", "discriminator/model.safetensors", "samples.jsonl"):
        assert (there / name).read_bytes() == (here / name).read_bytes(), name
    config = (there / "config.yaml").read_text()
    assert "root: s3://b-" in config
    for file in there.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), f"the key is in {file}"


@pytest.mark.slow
def test_the_program_itself_on_ray(bucket: str, small_under, tmp_path: Path, capsys) -> None:
    """Learner and discriminator store their parts from their own processes."""
    words = [*small_under(tmp_path, "run.name=cut", "rollout.engine=transformers"), f"run.root={bucket}"]
    command = [sys.executable, "-m", "rlgaf_ray.main", *words, "run.iterations=2000"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    folder = Remote(bucket) / "cut"
    wait_until((folder / "checkpoints" / "latest").is_file, "checkpoint", process=process, pause=0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = int((folder / "checkpoints" / "latest").read_text().strip().removeprefix("step_"))
    assert main(["--resume", folder.uri, f"run.iterations={reached + 4}"]) == 0
    assert f"results are in {folder}" in " ".join(capsys.readouterr().out.split())
    assert main(["report", folder.uri, "--out", str(tmp_path)]) == 0
    assert (tmp_path / "report.html").is_file()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == list(range(reached + 5))
    assert {f"{n:06d}.parquet" for n in range(1, reached + 5)} <= {
        path.name for path in (folder / "rollouts").children()
    }
    assert "model.safetensors" in (folder / "generator").files()


@pytest.mark.slow
def test_a_sweep(bucket: str, small_under, tmp_path: Path, monkeypatch, capsys) -> None:
    words = [*small_under(tmp_path, "run.name=two", "rollout.engine=transformers"), "run.iterations=2"]
    words += ["evaluation.every=1", "sweep.scheduler=pbt", "sweep.pbt.every=1", f"run.root={bucket}"]
    words += ["sweep.space.generator.learning_rate.grid=[1e-4, 2e-4]"]
    assert main(["tune", *words]) == 1
    assert "remove the secret key from run.root" in capsys.readouterr().err
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    public = bucket.replace(f"{KEY}:{SECRET}@", "")
    assert main(["tune", *words, f"run.root={public}"]) == 0
    folder = Remote(public) / "two"
    assert {"sweep.html", "best.yaml", "config.yaml", "tune/tuner.pkl"} <= set(folder.files())
    assert sum(name.endswith("generator/model.safetensors") and name.count("/") == 3 for name in folder.files()) == 2
    assert main([str(folder / "best.yaml"), "--print-config"]) == 0
    assert f"root: {public}" in capsys.readouterr().out
    assert main(["tune", "--resume", folder.uri]) == 0
