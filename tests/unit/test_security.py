"""What an attacker could plant, each refused or made harmless: secrets, scripts, pickles, names that lead elsewhere."""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from rich.console import Console

from rlgaf_ray.config import ConfigError, dump_config, load_config
from rlgaf_ray.config.hidden import public
from rlgaf_ray.errors import UserError
from rlgaf_ray.loop.checkpoint import Checkpoints, DamagedCheckpoint
from rlgaf_ray.loop.run_folder import RunFolder
from rlgaf_ray.main import main
from rlgaf_ray.models.generator import build_tiny_gpt2, load_generator
from rlgaf_ray.report.console import Terminal, write_samples

REPOSITORY = Path(__file__).parents[2]
SECRET = "hunter2hunter2hunter2"


def calls(name: str) -> Iterator[tuple[str, ast.Call]]:
    """Every call of a function or method of this name in the package."""
    for path in sorted((REPOSITORY / "rlgaf_ray").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == name:
                yield f"{path.relative_to(REPOSITORY)}:{node.lineno}", node


# Pickle and code.


class Trap:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self.proof),)


def test_nothing_in_the_package_reads_a_pickle() -> None:
    """``weights/ipc.py`` makes one, for engines that this very run started, and reads none."""
    for module in ("pickle", "cloudpickle", "torch", "joblib", "dill", "yaml"):
        for name in ("load", "loads", "unsafe_load", "full_load"):
            found = [where for where, call in calls(name) if ast.unparse(call.func) == f"{module}.{name}"]
            assert found == ([] if (module, name) != ("yaml", "load") else found[:1]), (module, name)
    readers = [call for _, call in calls("load") if ast.unparse(call.func) == "yaml.load"]
    assert [ast.unparse(call) for call in readers] == ["yaml.load(text, Loader=Reader)"]  # of yaml.SafeLoader
    for where, call in calls("load"):
        if ast.unparse(call.func) == "np.load":
            assert "allow_pickle=False" in ast.unparse(call), where


def test_models_are_read_as_safetensors_alone() -> None:
    no_weights = re.compile(r"(Config|Tokenizer)\.from_pretrained")
    weights = [
        (where, call) for where, call in calls("from_pretrained") if not no_weights.search(ast.unparse(call.func))
    ]
    assert len(weights) >= 5
    for where, call in weights:
        assert "use_safetensors" in ast.unparse(call), where


@pytest.fixture
def pickled_model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    model = build_tiny_gpt2(vocab_size=20, end_of_text_id=0, seed=0)
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


def test_a_model_that_is_a_pickle_is_refused_unless_asked_for(pickled_model: Path, tmp_path: Path, capsys) -> None:
    root = tmp_path / "runs"
    assert main([f"model.generator={pickled_model}", "rollout.engine=transformers", f"run.root={root}"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith(f"error: model.generator={pickled_model} has no safetensors")
    assert "model.allow_pickle=true" in error and not root.exists()
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load_generator(pickled_model)
    assert load_generator(pickled_model, allow_pickle=True).config.vocab_size == 20


def test_even_a_pickle_that_was_asked_for_runs_no_code(pickled_model: Path, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    (pickled_model / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(proof)))
    with pytest.raises(UserError, match=r"pytorch_model\.bin contains more than weights"):
        load_generator(pickled_model, allow_pickle=True)
    assert not proof.exists()


def test_code_that_comes_with_a_model_does_not_run_unless_asked_for(tmp_path: Path, capsys) -> None:
    folder, proof = tmp_path / "model", tmp_path / "proof"
    folder.mkdir()
    (folder / "code.py").write_text(
        f"import os\nimport transformers\nos.mkdir({str(proof)!r})\n"
        "class Planted(transformers.PreTrainedConfig):\n    max_position_embeddings = 1\n"
    )
    (folder / "config.json").write_text(
        json.dumps({"model_type": "planted", "auto_map": {"AutoConfig": "code.Planted"}})
    )
    (folder / "model.safetensors").write_bytes(b"")
    words = [f"model.generator={folder}", "rollout.engine=transformers", f"run.root={tmp_path / 'runs'}"]
    assert main(words) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: model.generator={folder} cannot be read") and error.count("\n") == 1
    assert not proof.exists()
    assert load_config().model.trust_remote_code is False
    assert main([*words, "model.trust_remote_code=true"]) == 1  # said before it runs, whatever becomes of it
    assert capsys.readouterr().err.startswith(f"model.trust_remote_code=true: Python code of {folder} will run")
    assert proof.exists()


# YAML.


def bomb(levels: int) -> str:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (bomb(9), "more than 50000 values with aliases expanded"),
        ("a: " + "[" * 10_000 + "]" * 10_000, "nested more than 30 levels deep"),
        ("a: &a [1, *a]", "alias *a refers to a value that contains it"),
        ("a: !!python/object/apply:os.system [true]", "is not supported: write plain values"),
        ("a: !!timestamp x", "is not supported: write plain values"),
        ("#" * 2**21, "characters are too long for a config"),
    ],
    ids=["bomb", "deep", "endless", "python", "crash", "huge"],
)
def test_yaml_that_would_run_or_grow_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "planted.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_an_alias_that_is_small_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("run: {seed: &seed 3, iterations: *seed}")
    assert load_config(path).run.iterations == 3


# Names that lead elsewhere.


@pytest.mark.parametrize(
    "name", ["..", "../x", "/etc/x", "a/b", "a\\b", "%2e%2e", "..%2Fx", ".hidden", "x\n", "x\0", ""]
)
def test_a_run_name_stays_under_its_root(name: str) -> None:
    with pytest.raises(ConfigError, match=r"run\.name"):
        load_config(None, [f"run.name={json.dumps(name)}"])


@pytest.mark.parametrize("root", ["s3://bucket/runs/../other", "s3://bucket/%2e%2e/other", "file:///runs/%2E%2E/x"])
def test_a_root_by_uri_has_no_dots_in_it(root: str) -> None:
    with pytest.raises(ConfigError, match="write the resolved path"):
        load_config(None, [f"run.root={root}"])


def test_a_resumed_uri_cannot_smuggle_a_name_in(capsys) -> None:
    assert main(["--resume", "s3://bucket/runs/..%2Fother"]) == 2
    assert capsys.readouterr().err.startswith("error: run.name=..%2Fother")


def test_a_link_that_leads_nowhere_is_in_the_way_of_a_new_run(tmp_path: Path) -> None:
    (tmp_path / "x").symlink_to(tmp_path / "elsewhere")
    assert RunFolder(load_config(None, [f"run.root={tmp_path}", "run.name=x"]).run).exists()


def test_a_pointer_and_a_manifest_stay_in_their_folder(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    path = checkpoints.save(1, lambda folder: (folder / "a").write_text("1"), {"iteration": 1}, best=False)
    (tmp_path / "checkpoints" / "best").write_text("../../elsewhere\n")
    with pytest.raises(DamagedCheckpoint, match="does not name a checkpoint"):
        checkpoints.named("best")
    assert isinstance(path, Path)
    manifest = json.loads((path / "manifest.json").read_text())
    for name in ("../../elsewhere", "/etc/hostname"):
        (path / "manifest.json").write_text(json.dumps({name: "0", **manifest}))
        with pytest.raises(DamagedCheckpoint, match="is not a list of this checkpoint's files"):
            checkpoints.load_state(path)


# What a model writes.

PLANTED = "<script>alert(1)</script><img src=x onerror=alert(1)>\x1b]0;owned\x07\n~~~~\n<b>out</b>"


def planted_run(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(f"run: {{name: '{PLANTED[:25]}', root: 's3://KEY:{SECRET}@bucket/runs'}}\n")
    (folder / "metrics.jsonl").write_text(json.dumps({"iteration": 0, "reward/mean": 1.0, "generator/kl": 0.1}) + "\n")
    (folder / "samples.jsonl").write_text(json.dumps({"before": PLANTED, "after": PLANTED}) + "\n")
    (folder / "guard.jsonl").write_text(
        json.dumps({"iteration": 1, "verdict": "x", "action": "warn", "evidence": PLANTED}) + "\n"
    )
    return folder


def test_a_report_shows_what_a_model_wrote_and_runs_and_loads_nothing(tmp_path: Path) -> None:
    run = planted_run(tmp_path / "run")
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "<script" not in page and "<img" not in page and "&lt;script&gt;" in page
    assert SECRET not in page
    policy = page.partition('Content-Security-Policy" content="')[2].partition('"')[0]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules == {
        "default-src": "'none'",
        "style-src": "'unsafe-inline'",  # of the page itself and of its figures; without it they had no style
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_samples_stay_in_their_fence_and_do_not_steer_the_terminal(tmp_path: Path, capsys) -> None:
    write_samples(tmp_path / "samples.md", [PLANTED], ["~~~~~~~"], 1)
    lines = (tmp_path / "samples.md").read_text().splitlines()
    fences = [line for line in lines if line.startswith("~~~~~~~~")]
    assert len(fences) == 2 and lines.index("~~~~") < lines.index(fences[1])
    Terminal(Console(force_terminal=False)).on_message(f"{PLANTED} s3://KEY:{SECRET}@bucket/x")
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and SECRET not in shown


# Secrets.


@pytest.mark.parametrize(
    "text",
    [
        f"s3://KEY:{SECRET}@bucket/runs",
        f"s3://KEY:{SECRET}/rest@bucket/runs",  # '/' that should have been %2F
        f"https://user:{SECRET}@host/x?y=1",
        f"https://host/x?X-Amz-Signature={SECRET}&y=1",
        f"https://host/x?access_token={SECRET}",
        f"OSError: HEAD https://host/x?api_key={SECRET} failed",
        f"hf_{SECRET}",
    ],
)
def test_a_secret_in_a_text_is_hidden(text: str) -> None:
    assert SECRET not in public(text)
    assert SECRET[:10] not in public(text)


@pytest.mark.parametrize("text", ["s3://minio:9000/me@home", "s3://bucket/me@home", "task.prompt_tokens=3", "a?b=c"])
def test_what_is_no_secret_is_shown(text: str) -> None:
    assert public(text) == text


def test_secrets_of_the_environment_reach_no_output(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "DB_PASSWORD"):
        monkeypatch.setenv(name, f"{name.lower()}-{SECRET}")
    value = os.environ["HF_TOKEN"] + " " + os.environ["WANDB_API_KEY"]
    assert SECRET not in dump_config(load_config(None, [f"task.imdb.instruction='{{sentiment}} {value}'"]))
    assert main([f"run.seed={value}"]) == 2
    assert main([f"{value}"]) == 2
    assert main([f"run.seed.{os.environ['DB_PASSWORD']}=1"]) == 2
    assert main([f"model.generator=./{os.environ['AWS_SECRET_ACCESS_KEY']}", "rollout.engine=transformers"]) == 1
    output = capsys.readouterr()
    assert output.err.count("\n") == 4 and SECRET not in output.err + output.out


def test_a_secret_is_hidden_before_a_message_is_cut(capsys) -> None:
    assert main([f"run.seed=s3://KEY:{SECRET * 5}@bucket/runs"]) == 2
    assert main(["run.iterations=many", f"run.root=s3://KEY:{SECRET}/x@bucket"]) == 2
    assert SECRET[:8] not in capsys.readouterr().err


def test_the_config_of_a_run_holds_no_key() -> None:
    config = load_config(None, ["run.name=x", f"run.root=s3://KEY:{SECRET}@bucket/runs", f"warmup.cache=hf_{SECRET}"])
    text = dump_config(config)
    assert SECRET not in text and "KEY" not in text
    assert yaml.safe_load(text)["run"]["root"] == "s3://bucket/runs"


# Ray.


def test_a_ray_of_the_runs_own_asks_for_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own default for "local", which nothing here may turn off; it makes the token where there is none."""
    import ray
    from ray._private import worker
    from ray._private.authentication import authentication_token_setup as setup

    from rlgaf_ray.actors import cluster

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "left by a test")  # so that it is put back
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setattr(setup, "Config", SimpleNamespace(initialize=lambda text: None))
    seen: list[object] = []

    def init(*words: str, **settings: object) -> None:
        seen.append((words, "RAY_AUTH_MODE" in os.environ, worker.enable_token_auth_by_default()))
        seen.append(os.environ.pop("RAY_AUTH_MODE"))

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with cluster.ray_session(load_config()):
        pass
    assert seen == [(("local",), False, True), "token"]
