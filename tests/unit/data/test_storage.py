"""Remote places over file:// URIs; tests/integration uses an S3 server."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import threading
import time
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow.fs import FileInfo, FileType, LocalFileSystem
from tokenizers import Tokenizer, models

from rlgaf_ray.data.connection import proxy_for
from rlgaf_ray.data.handover import checksums, loads_from_storage, saves_to_storage
from rlgaf_ray.data.mirror import Mirror
from rlgaf_ray.data.remote import Remote, StorageError, StorageRefused
from rlgaf_ray.data.storage import copy_tree, remove, writing
from tests.patience import wait_until


@pytest.fixture
def remote(tmp_path: Path) -> Remote:
    return Remote(f"file://{tmp_path}/remote", timeout=0.6)


class Model:
    """Saves and loads like an actor on its own node."""

    text = "weights"

    @saves_to_storage
    def save(self, folder: Path, *, extra: str = "") -> None:
        (folder / "deep").mkdir(parents=True)
        (folder / "deep" / "model").write_text(self.text + extra)
        self.wrote_in = folder

    @loads_from_storage
    def load(self, folder: Path) -> str:
        self.read_in = folder
        return (folder / "deep" / "model").read_text()


def failing(monkeypatch: pytest.MonkeyPatch, times: int, error: str = "AWS Error NETWORK_CONNECTION") -> list[str]:
    """Let the next ``times`` writes fail; return the list of the failed names."""
    real, failed = Remote._make_parent, list[str]()

    def make_parent(self: Remote) -> None:
        if len(failed) < times:
            failed.append(self.name)
            raise OSError(error)
        real(self)

    monkeypatch.setattr(Remote, "_make_parent", make_parent)
    return failed


def test_files_round_trip(remote: Remote, tmp_path: Path) -> None:
    (remote / "a" / "b.txt").write_text("one")
    (remote / "c.txt").write_text("twenty")
    assert remote.files() == {"a/b.txt": 3, "c.txt": 6}
    assert [child.name for child in remote.children()] == ["a", "c.txt"]
    assert (remote / "c.txt").read_text() == "twenty"
    remote.download(tmp_path / "flat", recursive=False)
    assert [path.name for path in (tmp_path / "flat").iterdir()] == ["c.txt"]
    remote.download(tmp_path / "whole")
    copied = Remote(f"file://{tmp_path}/copied")
    copied.upload_folder(tmp_path / "whole")
    copy_tree(copied, copied / "again", without=("c.*",))
    assert copied.files() == {"a/b.txt": 3, "c.txt": 6, "again/a/b.txt": 3}
    remove(copied / "a")
    remove(copied / "a")  # no error if it does not exist
    assert set(copied.files()) == {"c.txt", "again/a/b.txt"}
    with pytest.raises(FileNotFoundError):
        (remote / "none").read_bytes()


def test_credentials_are_pickled_but_not_shown() -> None:
    place = Remote("s3://KEY:SE%2FCRET@bucket/runs?region=eu-west-1") / "name"
    assert str(place) == repr(place) == "s3://bucket/runs/name?region=eu-west-1"
    assert (place.name, place.path) == ("name", "bucket/runs/name")
    assert pickle.loads(pickle.dumps(place)).uri == "s3://KEY:SE%2FCRET@bucket/runs/name?region=eu-west-1"
    assert sorted([place / "b", place / "a"])[0] == place / "a"


def test_transient_failures_are_retried(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = failing(monkeypatch, 1)
    (remote / "x").write_text("arrived")
    assert (remote / "x").read_text() == "arrived"
    assert failed == ["x"]


def test_permanent_failures_raise_after_the_timeout(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, 1000, "AWS Error\n  for s3://KEY:SECRET@bucket")
    start = time.monotonic()
    with pytest.raises(StorageError) as caught:
        (remote / "x").write_text("never arrives")
    assert str(caught.value) == f"{remote}/x could not be written within 0.6 s: AWS Error for s3://bucket"
    assert time.monotonic() - start < 20  # not the default 120 s


def test_an_interrupted_read_is_restarted(remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: object) -> int:
            raise OSError("connection reset")

    (remote / "x").write_text("whole")
    real, streams = Remote._stream, list[object]()

    def stream(self: Remote) -> object:
        streams.append(Broken() if len(streams) % 2 == 0 else real(self))
        return streams[-1]

    monkeypatch.setattr(Remote, "_stream", stream)
    assert (remote / "x").read_text() == "whole"
    assert (remote / "x").sha256() == hashlib.sha256(b"whole").hexdigest()
    remote.download(tmp_path / "here")
    assert (tmp_path / "here" / "x").read_text() == "whole"
    assert len(streams) == 6


def test_an_incomplete_write_raises(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    class Losing:
        def __getattr__(self, name: str) -> object:
            return getattr(LocalFileSystem(), name)

        def open_output_stream(self, path: str) -> pa.BufferOutputStream:
            return pa.BufferOutputStream()

    monkeypatch.setattr("rlgaf_ray.data.remote.connect", lambda *parts: Losing())
    with pytest.raises(StorageError, match=r"x could not be written within 0.6 s: 0 of 4 bytes were stored"):
        (remote / "x").write_text("lost")


def test_the_check_leaves_no_file_and_raises_without_write_access(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote.check()
    assert remote.files() == {}
    failed = failing(monkeypatch, 1000, "AWS Error ACCESS_DENIED during PutObject")
    with pytest.raises(StorageRefused, match=r"remote cannot be used: AWS Error ACCESS_DENIED during PutObject$"):
        remote.check()
    assert len(failed) == 1  # a permanent error is not retried


@pytest.mark.parametrize(
    ("place", "word"), [("s3://K:S@bucket", "NETWORK_CONNECTION"), ("gs://anonymous@bucket", "UNAVAILABLE")]
)
def test_an_unreachable_endpoint_raises(place: str, word: str) -> None:
    with pytest.raises(StorageRefused, match=word) as caught:
        Remote(f"{place}/runs?scheme=http&endpoint_override=127.0.0.1:1", timeout=0.1).check()
    assert "@" not in str(caught.value) and "://bucket/runs?scheme=http" in str(caught.value)


@pytest.mark.parametrize(
    ("scheme", "endpoint", "expected"),
    [
        ("http", "127.0.0.1:5000", None),
        ("http", "http://localhost:5000", None),
        ("https", "s3.amazonaws.com", "http://proxy:3128"),
        ("https", "s3.inside.example", None),
        ("http", "s3.amazonaws.com", None),
    ],
)
def test_the_environments_proxy_is_not_used_for_loopback(
    monkeypatch: pytest.MonkeyPatch, scheme: str, endpoint: str, expected: str | None
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "NO_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "inside.example")
    assert proxy_for(scheme, endpoint) == expected


def test_methods_save_to_and_load_from_remote_folders(remote: Remote, tmp_path: Path) -> None:
    model = Model()
    model.save(tmp_path / "local", extra="!")
    assert (tmp_path / "local" / "deep" / "model").read_text() == "weights!"
    model.save(remote / "learner", extra="?")
    Model().save(remote / "discriminator")
    assert not model.wrote_in.exists()
    (remote / "state.json").write_text("{}")
    sums = checksums(remote)
    assert sums["learner/deep/model"] == hashlib.sha256(b"weights?").hexdigest()
    assert sums["discriminator/deep/model"] == hashlib.sha256(b"weights").hexdigest()
    assert sums["state.json"] == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert len(sums) == 5  # three files and a checksum file per writer
    assert model.load(remote / "learner") == "weights?"
    assert not model.read_in.exists()


def test_a_failed_upload_keeps_the_local_files(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()
    failing(monkeypatch, 1000)
    with pytest.raises(StorageError, match="NETWORK_CONNECTION; the files are kept in ") as caught:
        model.save(remote)
    assert str(model.wrote_in) in str(caught.value)
    assert (model.wrote_in / "deep" / "model").read_text() == "weights"
    remove(model.wrote_in)


def test_an_empty_folder_uploads_nothing(remote: Remote) -> None:
    class OtherRank:
        @saves_to_storage
        def save(self, folder: Path) -> None: ...

    OtherRank().save(remote)
    assert remote.files() == {}


def test_a_mirror_uploads_changed_files(remote: Remote, tmp_path: Path) -> None:
    local = tmp_path / "local"
    (local / "rollouts").mkdir(parents=True)
    (local / "old.txt").write_text("from the storage")
    mirror = Mirror(local, remote)
    mirror.keep_what_is_there()
    (local / "metrics.jsonl").write_text("{}\n")
    (local / "rollouts" / "1.parquet").write_text("rows")
    mirror.flush()
    assert remote.files() == {"metrics.jsonl": 3, "rollouts/1.parquet": 4}
    (local / "metrics.jsonl").open("a").write("{}\n")
    (local / "rollouts" / "1.parquet").unlink()
    mirror.flush()
    assert remote.files() == {"metrics.jsonl": 6, "rollouts/1.parquet": 4}


def test_a_name_outside_the_folder_is_not_downloaded(remote: Remote, tmp_path: Path, monkeypatch) -> None:
    (remote / "there").write_text("")

    class Planted(LocalFileSystem):
        """Lists a key with "..", which an object store allows."""

        def get_file_info(self, selector):
            (found,) = super().get_file_info(selector)
            return [FileInfo(f"{remote.path}/a/../../{found.base_name}", FileType.File, size=0)]

    monkeypatch.setattr(Remote, "filesystem", Planted())
    with pytest.raises(StorageError, match=r"'a/../../there', a path outside of it"):
        remote.download(tmp_path / "here")
    assert not (tmp_path / "there").exists()


def test_a_folder_created_during_the_listing_is_listed_again(remote: Remote, monkeypatch) -> None:
    (remote / "there").write_text("")
    looks = []

    class Appearing(LocalFileSystem):
        """Raises once, as Arrow does if the folder is created during the listing."""

        def get_file_info(self, selector):
            looks.append(selector)
            if len(looks) == 1:
                raise FileNotFoundError(selector.base_dir)
            return super().get_file_info(selector)

    monkeypatch.setattr(Remote, "filesystem", Appearing())
    assert remote.files() == {"there": 0}
    assert len(looks) == 2


def test_a_mirror_uploads_in_the_background_despite_failures(
    remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = tmp_path / "local"
    local.mkdir()
    failing(monkeypatch, 3)
    (local / "metrics.jsonl").write_text("{}\n")
    half = local / "half.parquet"  # just changed, so possibly incomplete
    half.write_text("ro")
    os.utime(half, (time.time() + 300,) * 2)  # in the future, also on a slow machine
    with Mirror(local, remote, every=0.02) as mirror:
        wait_until(lambda: "metrics.jsonl" in remote.files(), "first line", pause=0.02)
    assert set(remote.files()) == {"metrics.jsonl"}
    assert not any(thread.name == "storage-mirror" for thread in threading.enumerate())
    mirror.flush()
    assert set(remote.files()) == {"metrics.jsonl", "half.parquet"}


@pytest.mark.parametrize(
    "write",
    [lambda full: full.write_text("x"), lambda full: Tokenizer(models.BPE()).save(str(full))],
    ids=["by Python", "by a library in Rust"],
)
def test_a_full_disk_raises_with_the_innermost_place(write) -> None:
    expected = r"^inner could not be written: No space left on device( \(os error 28\))?$"
    with pytest.raises(StorageError, match=expected), writing(Path("outer")), writing(Path("inner")):
        write(Path("/dev/full"))  # always reports a full disk


def test_other_exceptions_pass_through() -> None:
    with pytest.raises(KeyError), writing(Path("somewhere")):
        raise KeyError("name")
