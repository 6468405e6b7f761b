from __future__ import annotations

from pathlib import Path

import pytest
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from rlgaf_ray.data.remote import StorageRefused
from rlgaf_ray.report.places import opened


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    filesystem = SubTreeFileSystem(str(tmp_path / "store"), LocalFileSystem())
    monkeypatch.setattr("rlgaf_ray.data.remote.connect", lambda *parts: filesystem)
    for name in ("metrics.jsonl", "generator/model", "checkpoints/latest"):
        path = tmp_path / "store" / "bucket" / "runs" / "one" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "store" / "bucket"


def test_output_is_uploaded_to_the_run_folder(store: Path, tmp_path: Path) -> None:
    with opened(["s3://K:S@bucket/runs/one?region=x", str(tmp_path)], None, subfolders=["generator"]) as places:
        one, other = places.folders
        assert (one.name, other) == ("one", tmp_path)
        assert sorted(path.relative_to(one).as_posix() for path in one.rglob("*") if path.is_file()) == [
            "generator/model",
            "metrics.jsonl",
        ]
        assert places.target == one
        (one / "figures").mkdir()
        (one / "figures" / "reward.svg").write_text("drawn")
        assert places.shown(one / "report.html") == "s3://bucket/runs/one/report.html?region=x"
    assert (store / "runs" / "one" / "figures" / "reward.svg").read_text() == "drawn"
    assert not one.exists()


def test_output_goes_to_the_given_folder_or_uri(store: Path, tmp_path: Path) -> None:
    with opened(["s3://bucket/runs/one"], str(tmp_path / "out")) as places:
        assert (places.target, places.remote) == (tmp_path / "out", None)
    with opened([str(tmp_path)], "s3://bucket/reports") as places:
        (places.target / "report.html").write_text("here")
    assert (store / "reports" / "report.html").read_text() == "here"
    assert not (tmp_path / "report.html").exists()


def test_local_paths_are_used_directly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with opened(["runs/one"], None) as places:
        assert (places.folders, places.target) == ([Path("runs/one")], Path("runs/one"))
        assert places.shown(Path("runs/one/report.html")) == "runs/one/report.html"
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_scheme_is_rejected() -> None:
    with pytest.raises(StorageRefused, match="unknown scheme"), opened(["ftp://host/run"], None):
        pass
