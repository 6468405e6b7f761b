"""The trackers against the services themselves: an MLflow server on loopback, W&B's offline files, Trackio's database.

Each sees a run that is killed at iteration 6, resumed at 4 and rolled back to 2, and has to hold one value a step.
W&B's client also logs to a server on loopback, which has the few answers that it needs to resume a run.
"""

from __future__ import annotations

import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rlgaf_ray.tracking.base import Trackers
from rlgaf_ray.tracking.build import make_trackers
from rlgaf_ray.tracking.files import Record

CONFIG = {"run": {"name": "tracked", "seed": 3}, "tracking": {"to": ["all"]}}
EXPECTED = {0: 0.0, 1: 1.0, 2: 2.0, 3: 300.0, 4: 400.0, 5: 500.0}


def trackers(name: str, folder: Path, *, start: int = 0, messages: list[str] | None = None) -> Trackers:
    report = print if messages is None else messages.append
    return Trackers(Record(folder), make_trackers([name]), config=CONFIG, start=start, report=report)


def log(found: Trackers, iterations: range, factor: float) -> None:
    for iteration in iterations:
        if iteration % 2 == 0:
            found.log_table(iteration, "rollouts", [{"response": f"text {iteration * factor}", "score": factor}])
        found.log(iteration, {"eval/loss": iteration * factor, "time/iteration": 0.5})


def killed(name: str, folder: str) -> None:
    """In a process of its own: iterations 0 to 6, and no end."""
    found = trackers(name, Path(folder))
    log(found, range(7), 1.0)
    assert found.workers[0].failure is None
    os.kill(os.getpid(), signal.SIGKILL)


KILLED = "import sys; from tests.integration.test_trackers import killed; killed(*sys.argv[1:])"


def go_through(name: str, folder: Path) -> None:
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", KILLED, name, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    messages: list[str] = []
    found = trackers(name, folder, start=4, messages=messages)
    log(found, range(5, 7), 10.0)
    found.rewind(2)
    log(found, range(3, 6), 100.0)
    found.log_table(5, "samples", [{"before": "a", "after": "b"}])
    found.close()
    assert not messages, messages


def one_value_a_step(history: list[tuple[int, float]]) -> dict[int, float]:
    assert len(dict(history)) == len(history), f"two values of one step: {history}"
    return dict(history)


# MLflow


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with SQLite, which ends with the module."""
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    pytest.importorskip("flask", reason="mlflow's server needs Flask")
    folder = tmp_path_factory.mktemp("mlflow")
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["server", "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination"]
    words += [str(folder / "artifacts"), "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "log").open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        while not answers(f"{address}/health"):
            assert server.poll() is None, (folder / "log").read_text()
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def answers(address: str) -> bool:
    try:
        return urllib.request.urlopen(address, timeout=1).status == 200
    except OSError:
        return False


@pytest.fixture
def client(mlflow_server: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "tests")
    return mlflow.MlflowClient(mlflow_server)


def runs_named(client: Any, name: str) -> list[Any]:
    experiment = client.get_experiment_by_name("tests").experiment_id
    return client.search_runs([experiment], filter_string=f"attributes.run_name = '{name}'")


def history(client: Any, run_id: str) -> dict[int, float]:
    return one_value_a_step([(item.step, item.value) for item in client.get_metric_history(run_id, "eval/loss")])


def test_mlflow_has_every_metric_once_a_step(client: Any, tmp_path: Path) -> None:
    go_through("mlflow", tmp_path / "run")
    (run,) = runs_named(client, "run")
    assert history(client, run.info.run_id) == EXPECTED
    assert run.info.status == "FINISHED"
    assert run.data.params == {"run.name": "tracked", "run.seed": "3", "tracking.to": "['all']"}
    assert set(run.data.metrics) == {"eval/loss", "time/iteration", "iteration"}
    table = client.load_table(run.info.experiment_id, "rollouts.json", run_ids=[run.info.run_id])
    assert table["iteration"].tolist() == [0, 2, 4]
    assert table["response"].tolist() == ["text 0.0", "text 2.0", "text 400.0"]
    samples = client.load_table(run.info.experiment_id, "samples.json", run_ids=[run.info.run_id])
    assert samples.to_dict("records") == [{"iteration": 5, "before": "a", "after": "b"}]


def test_a_run_that_loses_no_iteration_goes_on_in_its_mlflow_run(client: Any, tmp_path: Path) -> None:
    folder = tmp_path / "whole"
    folder.mkdir()
    with trackers("mlflow", folder) as found:
        log(found, range(3), 1.0)
    (first,) = runs_named(client, "whole")
    with trackers("mlflow", folder, start=2) as found:
        log(found, range(3, 5), 1.0)
    (second,) = runs_named(client, "whole")
    assert second.info.run_id == first.info.run_id
    assert history(client, second.info.run_id) == {iteration: float(iteration) for iteration in range(5)}
    table = client.load_table(second.info.experiment_id, "rollouts.json", run_ids=[second.info.run_id])
    assert table["iteration"].tolist() == [0, 2, 4]


def test_an_mlflow_server_that_is_gone_is_reported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    messages: list[str] = []
    with trackers("mlflow", tmp_path, messages=messages) as found:
        log(found, range(3), 1.0)
    (message,) = messages
    assert message.startswith("tracker mlflow failed and is disabled until the run is resumed (MlflowException: ")
    assert [row["iteration"] for row in Record(tmp_path).rows()] == [0, 1, 2]


# Weights & Biases


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of an offline file: LevelDB's log format after a header of seven bytes, W&B's own messages in it."""
    from wandb.proto import wandb_internal_pb2

    data, position, parts = path.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    block = 32 * 1024
    while position < len(data):
        if block - position % block < 7:  # padding: no header fits into the rest of the block
            position += block - position % block
            continue
        length = int.from_bytes(data[position + 4 : position + 6], "little")
        kind = data[position + 6]
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a full record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def test_wandb_offline_has_every_metric_once_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    go_through("wandb", tmp_path / "run")
    wandb.teardown()  # as at the end of a process: its service writes what it still holds
    (path,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    records = list(wandb_records(path))
    rows = [
        {(item.nested_key or [item.key])[0]: item.value_json for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    assert one_value_a_step([(int(row["_step"]), float(row["eval/loss"])) for row in rows]) == EXPECTED
    assert [int(row["_step"]) for row in rows if "rollouts" in row] == [0, 2, 4]
    assert [int(row["_step"]) for row in rows if "samples" in row] == [5]
    (run,) = {record.run.run_id: record.run for record in records if record.HasField("run")}.values()
    assert (run.project, run.run_group, run.display_name) == ("rlgaf_ray", "run", "run")
    assert {item.key: item.value_json for item in run.config.update if item.key != "_wandb"} == {
        "run": '{"name":"tracked","seed":3}',
        "tracking": '{"to":["all"]}',
    }


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    wandb = pytest.importorskip("wandb", reason="the extra wandb is not installed")
    wandb.teardown()  # it reads the environment once
    monkeypatch.setenv("WANDB_MODE", "offline")
    yield
    wandb.teardown()


def test_an_offline_wandb_run_keeps_its_id_until_it_is_uploaded(offline: None, tmp_path: Path) -> None:
    def resume(start: int) -> Path:
        with trackers("wandb", tmp_path, start=start) as found:
            found.log(start + 1, {"eval/loss": 0.0})
        (folder,) = (tmp_path / "wandb").glob("offline-run-*")
        return folder

    def run_id(folder: Path) -> str:
        return folder.name.rpartition("-")[2]

    first = resume(0)
    second = resume(1)
    assert run_id(second) == run_id(first)
    (second / f"run-{run_id(second)}.wandb.synced").touch()  # as by `wandb sync`
    third = resume(2)
    assert run_id(third) != run_id(first)
    assert (tmp_path / "wandb_run.txt").read_text() == run_id(third)


class WandbServer(BaseHTTPRequestHandler):
    """W&B's GraphQL and file stream, as far as its client needs them to log metrics and to resume a run."""

    protocol_version = "HTTP/1.1"
    runs: dict[str, list[dict[str, Any]]]  # the rows of each run's history

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        request = json.loads(gzip.decompress(data) if self.headers["Content-Encoding"] == "gzip" else data)
        if self.path.endswith("/file_stream"):
            if history := request.get("files", {}).get("wandb-history.jsonl"):
                self.runs[self.path.split("/")[-2]][history["offset"] :] = map(json.loads, history["content"])
            self.answer({})
        else:
            self.answer({"data": self.data(request["query"], request.get("variables", {}))})

    def data(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        bucket: dict[str, Any] = {"id": "1", "name": variables.get("name")}
        if "upsertBucket" in query:
            self.runs.setdefault(variables["name"], [])
            project = {"id": "1", "name": variables["project"], "entity": {"id": "1", "name": "me"}}
            return {"upsertBucket": {"bucket": bucket | {"project": project}, "inserted": True}}
        if "RunResumeStatus" in query:
            rows = self.runs.get(variables["name"])
            bucket |= {"historyTail": json.dumps([json.dumps(row) for row in rows or []][-1:]), "eventsTail": "[]"}
            bucket |= {"historyLineCount": len(rows or []), "eventsLineCount": 0, "logLineCount": 0, "config": "{}"}
            bucket |= {"summaryMetrics": "{}", "wandbConfig": '{"t": 1}', "tags": [], "displayName": "run"}
            return {"model": {"id": "1", "bucket": None if rows is None else bucket}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": None} for name in variables["files"]]
            return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}
        viewer = {"id": "1", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
        return {"viewer": viewer, "serverInfo": {"cliVersionInfo": {}, "features": []}}

    def answer(self, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        return None


@pytest.fixture
def wandb_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, list[dict[str, Any]]]]:
    """The runs of a W&B server on loopback."""
    wandb = pytest.importorskip("wandb", reason="the extra wandb is not installed")
    wandb.teardown()
    WandbServer.runs = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), WandbServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    yield WandbServer.runs
    wandb.teardown()
    server.shutdown()
    server.server_close()


def test_a_resumed_run_goes_on_in_its_wandb_run_and_a_rollback_in_a_new_one(
    wandb_runs: dict[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    def logged(run: str) -> dict[int, float]:
        return one_value_a_step([(row["_step"], row["eval/loss"]) for row in wandb_runs[run]])

    folder = tmp_path / "run"
    folder.mkdir()
    messages: list[str] = []
    with trackers("wandb", folder, messages=messages) as found:
        for iteration in range(4):
            found.log(iteration, {"eval/loss": float(iteration)})
    with trackers("wandb", folder, start=2, messages=messages) as found:  # iteration 3 is repeated
        for iteration in range(3, 6):
            found.log(iteration, {"eval/loss": iteration * 10.0})
    (first,) = wandb_runs
    assert logged(first) == {0: 0.0, 1: 1.0, 2: 2.0, 3: 3.0, 4: 40.0, 5: 50.0}
    with trackers("wandb", folder, start=5, messages=messages) as found:
        found.rewind(2)
        found.log(3, {"eval/loss": 300.0})
    (same, second) = wandb_runs
    assert (same, len(wandb_runs[first])) == (first, 6)
    assert logged(second) == {0: 0.0, 1: 1.0, 2: 2.0, 3: 300.0}
    assert (folder / "wandb_run.txt").read_text() == second
    assert not messages, messages


def test_wandb_without_a_login_is_reported_once_and_asks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    import wandb

    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    wandb.teardown()
    messages: list[str] = []
    try:
        with trackers("wandb", tmp_path, messages=messages) as found:
            log(found, range(3), 1.0)
    finally:
        wandb.teardown()
    (message,) = messages
    assert "tracker wandb failed" in message and "not logged in: run `wandb login`" in message


# Trackio


def test_trackio_has_every_metric_once_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio", reason="the extra trackio is not installed")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("TRACKIO_PROJECT", "tests")
    program = "import sys; from tests.integration.test_trackers import in_trackio; in_trackio(sys.argv[1])"
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "run")], check=True)


def in_trackio(folder: str) -> None:
    """In a process of its own: Trackio takes its folder from the environment when it is first imported."""
    go_through("trackio", Path(folder))
    from trackio.sqlite_storage import SQLiteStorage

    assert SQLiteStorage.get_runs("tests") == ["run"]
    logs = SQLiteStorage.get_logs("tests", "run", max_points=None)
    assert one_value_a_step([(row["step"], row["eval/loss"]) for row in logs if "eval/loss" in row]) == EXPECTED
    tables = {row["step"]: row["rollouts"]["_value"] for row in logs if "rollouts" in row}
    assert {step: rows[0]["response"] for step, rows in tables.items()} == {
        0: "text 0.0",
        2: "text 2.0",
        4: "text 400.0",
    }
    config = SQLiteStorage.get_run_config("tests", "run")
    assert config is not None and config["run"] == {"name": "tracked", "seed": 3}
