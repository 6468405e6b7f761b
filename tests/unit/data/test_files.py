"""Sources of rows: files, lists, globs, object stores and fsspec URIs."""

from __future__ import annotations

import glob
import json
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.fs
import pytest

from rlgaf_ray.data import remote
from rlgaf_ray.data.files import find_files, read_rows
from rlgaf_ray.errors import UserError


def write(path: Path, *numbers: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"n": number}) + "\n" for number in numbers))


def numbers(paths: Any) -> list[int]:
    return [row["n"] for _, row in read_rows(paths, "task.jsonl.path")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "b.jsonl", 3, 4)
    write(tmp_path / "a.jsonl", 1, 2)
    write(tmp_path / "c" / "d.jsonl", 5)
    write(tmp_path / "e[1].jsonl", 6)
    (tmp_path / "f.csv").write_text("n\n7\n")
    return tmp_path


def test_files_globs_and_lists_keep_their_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a glob are sorted by name, a list keeps its order; an existing name with brackets is not a glob."""
    assert numbers(str(folder / "[ab].jsonl")) == [1, 2, 3, 4]
    assert numbers(str(folder / "*" / "*.jsonl")) == [5]
    assert numbers(str(folder / "**" / "?.jsonl")) == [1, 2, 3, 4, 5]
    assert numbers(str(folder / "**" / "**" / "d.jsonl")) == [5]  # once
    assert numbers([str(folder / "b.jsonl"), str(folder / "a.jsonl")]) == [3, 4, 1, 2]
    assert numbers(str(folder / "e[1].jsonl")) == [6]
    assert numbers([str(folder / "f.csv"), (folder / "a.jsonl").as_uri()]) == ["7", 1, 2]
    monkeypatch.setenv("HOME", str(folder))
    assert numbers("~/a.jsonl") == [1, 2]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.jsonl", "^task.jsonl.path=.*none.jsonl does not exist: give a file"),
        ("*.parquet", "matches no file: give a file"),
        ("c", "it is a folder; name its files, such as .*/c/\\*.jsonl"),
        ("x" * 5000, "cannot be read: File name too long"),
    ],
)
def test_missing_files_raise(folder: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        numbers([str(folder / "a.jsonl"), str(folder / name)])


def test_object_stores_hide_credentials_in_errors(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """URIs take the same options and credentials as run.root."""
    store = pyarrow.fs.SubTreeFileSystem(str(folder.parent), pyarrow.fs.LocalFileSystem())
    monkeypatch.setattr(remote, "connect", lambda *_: store)
    bucket = f"s3://KEY:HUSHHUSH@{folder.name.replace('_', '-')}"
    folder.rename(folder.with_name(folder.name.replace("_", "-")))
    assert numbers(f"{bucket}/a.jsonl?region=x") == [1, 2]
    assert numbers(f"{bucket}/*.jsonl?region=x") == [1, 2, 3, 4, 6]
    assert numbers(f"{bucket}/*/*.jsonl") == [5]
    for name, message in (
        ("none.jsonl", "does not exist"),
        ("*.json", "matches no file"),
        ("a.jsonl?x=1", "no option 'x'"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            numbers(f"{bucket}/{name}")
        assert "HUSHHUSH" not in str(caught.value)
    with pytest.raises(UserError, match="has no bucket"):
        numbers("s3:///a.jsonl")


def test_globs_of_object_stores_match_like_local_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "bucket" / "data"
    names = ["a", "B", "x/a", "x/y/a", "x/y/z/b", "x1/a", "c.jsonl/a", ".h", ".x/a", "x/.y/a", "x/y/.h"]
    for number, name in enumerate(names):
        write(folder / f"{name}.jsonl", number)
    store = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
    monkeypatch.setattr(remote, "connect", lambda *_: store)
    patterns = ["*.jsonl", "**/*.jsonl", "*/**/*.jsonl", "**/y/**/*.jsonl", "x/**/[ab].jsonl", "**/a.jsonl"]
    patterns += ["x*/a.jsonl", "x**/*.jsonl", "**", "x/**", "*/*.jsonl", "**/**/b.jsonl", "[!a]*.jsonl"]
    patterns += ["**/.h.jsonl", ".*/*.jsonl", "**/.y/*"]
    for pattern in patterns:
        paths = sorted({path for path in glob.glob(f"{folder}/{pattern}", recursive=True) if Path(path).is_file()})
        expected = [path.replace(f"{tmp_path}/", "s3://") for path in paths]
        found = [file.name for file in find_files(f"s3://bucket/data/{pattern}", "task.jsonl.path")]
        assert found == expected != [], pattern


def test_fsspec_uris(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the in-memory file system; hf:// would need a network."""
    files = fsspec.filesystem("memory")
    for name, number in (("b", 2), ("a", 1)):
        files.pipe(f"/rows/{name}.jsonl", json.dumps({"n": number}).encode())
    assert numbers("memory://rows/b.jsonl") == [2]
    assert numbers("memory://rows/*.jsonl") == [1, 2]
    with pytest.raises(UserError, match="matches no file"):
        numbers("memory://rows/*.csv")
    with pytest.raises(UserError, match=r"none.jsonl cannot be read"):
        numbers("memory://rows/none.jsonl")
    with pytest.raises(UserError, match=r"task.jsonl.path=nowhere://a.jsonl cannot be read: Protocol not known"):
        numbers("nowhere://a.jsonl")

    def unreachable(*_: Any, **__: Any) -> None:
        raise RuntimeError("the client's own error\nin two lines")

    monkeypatch.setattr(type(files), "_open", unreachable)
    with pytest.raises(UserError, match=r"^memory:///rows/b.jsonl cannot be read: the client's own error in two line"):
        numbers("memory://rows/b.jsonl")
    monkeypatch.setattr(type(files), "glob", unreachable)
    with pytest.raises(UserError, match=r"^task.jsonl.path=.*jsonl cannot be read: the client's own error"):
        numbers("memory://rows/*.jsonl")


def test_home_folders_are_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert numbers("~/a.jsonl") == [1, 2]
    with pytest.raises(UserError, match=r"^task\.jsonl\.path=~no-such-user/a\.jsonl does not exist: give a file"):
        numbers("~no-such-user/a.jsonl")
