"""Runs whose folder is a URI, with a part of the file system as the object store."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from rlgaf_ray.cli.words import split_words
from rlgaf_ray.config import ConfigError, dump_config, load_config
from rlgaf_ray.config.load import run_config_file
from rlgaf_ray.data.remote import Remote, StorageError
from rlgaf_ray.errors import UserError
from rlgaf_ray.loop.run_folder import RunFolder, config_file
from rlgaf_ray.run.preparation import with_name

ROOT = "s3://KEY:SECRET@bucket/runs"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the file system that is ``s3://bucket``."""
    (tmp_path / "store" / "bucket").mkdir(parents=True)
    filesystem = SubTreeFileSystem(str(tmp_path / "store"), LocalFileSystem())
    monkeypatch.setattr("rlgaf_ray.data.remote.connect", lambda *parts: filesystem)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "store" / "bucket"


def folder_of(*more: str) -> RunFolder:
    words = ["run.name=one", f"run.root={ROOT}", "run.storage_timeout_seconds=0.1", *more]
    return RunFolder(load_config(None, words).run)


def test_a_path_is_not_mirrored(tmp_path: Path) -> None:
    folder = RunFolder(load_config(None, ["run.name=one", f"run.root={tmp_path}"]).run)
    assert folder.place == folder.local == tmp_path / "one"
    assert folder.mirror is None and not folder.exists()
    folder.local.mkdir()
    with folder.mirrored():
        (folder.local / "metrics.jsonl").write_text("{}\n")
    assert folder.exists() and (folder.local / "metrics.jsonl").is_file()


def local_folder(root: Path, name: str = "one") -> RunFolder:
    return RunFolder(load_config(None, [f"run.name={name}", f"run.root={root}"]).run)


def test_a_folder_is_used_by_one_process_at_a_time(tmp_path: Path) -> None:
    folder = local_folder(tmp_path / "runs")
    in_use = rf"runs/one is in use by process {os.getpid()} on .+: wait for that run or stop it, or choose another"
    with folder.claimed():
        with pytest.raises(UserError, match=in_use), local_folder(tmp_path / "runs").claimed():
            pass
        with local_folder(tmp_path / "runs", "two").claimed():
            pass
        assert not folder.exists(), "its lock alone is no run"
        (folder.local / "config.yaml").write_text("")
        assert folder.exists()
    with local_folder(tmp_path / "runs").claimed():
        assert folder.exists(), "for a resumed run"


def test_an_empty_run_folder_is_removed(tmp_path: Path) -> None:
    folder = local_folder(tmp_path / "deep" / "runs")
    with pytest.raises(UserError, match="bad data"), folder.claimed():
        raise UserError("bad data")
    assert list(tmp_path.iterdir()) == []
    folder.local.mkdir(parents=True)
    with folder.claimed():
        pass
    assert folder.local.is_dir() and list(folder.local.iterdir()) == [], "who made it keeps it"
    (tmp_path / "deep" / "runs" / "file").write_text("precious")
    with (
        pytest.raises(UserError, match="runs/file exists and is not a folder"),
        local_folder(tmp_path / "deep" / "runs", "file").claimed(),
    ):
        pass


def test_a_killed_process_releases_its_folder(tmp_path: Path) -> None:
    code = (
        "import sys, time; from rlgaf_ray.config import load_config; from rlgaf_ray.loop.run_folder import RunFolder\n"
        "claim = RunFolder(load_config(None, ['run.name=one', 'run.root=' + sys.argv[1]]).run).claimed()\n"
        "claim.__enter__(); print('claimed', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"claimed\n"
        folder = local_folder(tmp_path)
        with pytest.raises(UserError, match=f"in use by process {process.pid} on"), folder.claimed():
            pass
        process.kill()
    assert folder.local.is_dir()
    with folder.claimed():
        assert not folder.exists(), "a new run may have it"


def test_default_names_differ_within_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.strftime", lambda form: "20260101-000000")
    names = {with_name(load_config()).run.name for _ in range(3)}
    assert len(names) == 3 and all(str(name).startswith("imdb-") for name in names), names


def test_files_are_stored_and_downloaded_again(store: Path) -> None:
    folder = folder_of()
    assert not folder.exists()
    assert list(store.rglob("*")) == [store / "runs"], "the check leaves no file"
    folder.local.mkdir(parents=True)
    (folder.local / "stale.txt").write_text("of a run that was killed and whose store was emptied")
    folder.fetch()
    assert not folder.local.exists()
    with folder.mirrored():
        (folder.local / "rollouts").mkdir(parents=True)
        (folder.local / "rollouts" / "1.parquet").write_text("rows")
        (folder.local / "metrics.jsonl").write_text("{}\n")
        (folder.local / "trials" / "a").mkdir(parents=True)
        (folder.local / "trials" / "a" / "metrics.jsonl").write_text("a trial stores its own")
    assert not folder.local.exists()
    assert sorted(path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_file()) == [
        "runs/one/metrics.jsonl",
        "runs/one/rollouts/1.parquet",
    ]
    again = folder_of()
    assert again.exists()
    again.fetch()
    assert [path.name for path in again.local.iterdir()] == ["metrics.jsonl"]


def test_a_failed_run_is_stored_too(store: Path) -> None:
    folder = folder_of()
    with pytest.raises(ValueError, match="no tokens"), folder.mirrored():
        folder.local.mkdir(parents=True)
        (folder.local / "guard.jsonl").write_text("{}\n")
        raise ValueError("no tokens")
    assert (store / "runs" / "one" / "guard.jsonl").is_file()


def test_files_that_cannot_be_stored_are_kept(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(self: Remote) -> None:
        raise OSError("AWS Error NETWORK_CONNECTION")

    folder = folder_of()
    monkeypatch.setattr(Remote, "_make_parent", no_network)
    with pytest.raises(StorageError) as caught, folder.mirrored():
        folder.local.mkdir(parents=True)
        (folder.local / "metrics.jsonl").write_text("{}\n")
        folder.flush()
    assert str(caught.value) == (
        "s3://bucket/runs/one/metrics.jsonl could not be written within 0.1 s: AWS Error NETWORK_CONNECTION; "
        f"the run's other files are kept in {folder.local}"
    )
    assert (folder.local / "metrics.jsonl").is_file()


def test_a_runs_uri_finds_its_config(store: Path) -> None:
    path, overrides = split_words([f"{ROOT}/one?region=x", "run.seed=4"], resume=True)
    assert (path, overrides) == ([], [f"run.root={ROOT}?region=x", "run.name=one", "run.seed=4"])
    with pytest.raises(ConfigError, match=r"nothing to resume: s3://bucket/runs/one/config.yaml\?region=x does not"):
        run_config_file(overrides, config_file)
    (store / "runs" / "one").mkdir(parents=True)
    begun = load_config(None, [*overrides, "run.seed=3", "run.iterations=9"])
    (store / "runs" / "one" / "config.yaml").write_text(dump_config(begun))
    config = load_config(run_config_file(overrides, config_file), overrides)
    assert (config.run.seed, config.run.iterations) == (4, 9)
    assert config.run.remote == f"{ROOT}/one?region=x", "the key is the command line's, not the file's"
    with pytest.raises(ConfigError, match="a run's URI needs --resume"):
        split_words([f"{ROOT}/one"])
    assert split_words(["s3://bucket/best.yaml?region=x", "run.seed=4"]) == (
        ["s3://bucket/best.yaml?region=x"],
        ["run.seed=4"],
    )
