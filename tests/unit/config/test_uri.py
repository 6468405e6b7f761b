from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from rlgaf_ray.cli.words import split_words
from rlgaf_ray.config import Config, ConfigError, dump_config, load_config, uri, with_values
from rlgaf_ray.config.run import RunSection


def run_of(*overrides: str):
    return load_config(None, ["run.name=one", *overrides]).run


def test_local_paths_are_used_directly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = run_of()
    assert (run.folder, run.remote, run.shown) == (tmp_path / "runs" / "one", None, str(tmp_path / "runs" / "one"))


def test_a_file_uri_is_a_path() -> None:
    run = run_of("run.root=file:///data/my%20runs")
    assert (run.folder, run.remote) == (Path("/data/my runs/one"), None)


def test_a_remote_root_has_a_local_folder_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run = run_of("run.root=s3://bucket/runs?region=eu-west-1")
    assert run.remote == run.shown == "s3://bucket/runs/one?region=eu-west-1"
    assert run.folder.is_relative_to(tmp_path) and run.folder.name == "one"
    assert run.folder != run_of("run.root=s3://bucket/other?region=eu-west-1").folder


def test_keys_are_neither_written_nor_shown() -> None:
    config = load_config(None, ["run.name=one", "run.root=s3://KEY:SE%2FCRET@bucket/runs?region=x"])
    assert config.run.remote == "s3://KEY:SE%2FCRET@bucket/runs/one?region=x"
    assert config.run.shown == "s3://bucket/runs/one?region=x"
    text = dump_config(config)
    assert "KEY" not in text and "CRET" not in text and "root: s3://bucket/runs?region=x" in text
    same_place = run_of("run.root=s3://bucket/runs?region=x").folder
    assert config.run.folder == same_place
    assert with_values(config, {"run.seed": 3}).run.remote == config.run.remote
    assert uri.public("no key in runs/me@home, s3://bucket/me@home") == "no key in runs/me@home, s3://bucket/me@home"


@pytest.mark.parametrize(
    ("root", "expected"),
    [
        ("runs", "run.name=one"),
        ("/data/runs", "run.root=/data/runs run.name=one"),
        ("~/runs", "'run.root=~/runs' run.name=one"),
        ("/data/my runs", "'run.root=/data/my runs' run.name=one"),
        ("file:///data/my%20runs", "run.root=file:///data/my%20runs run.name=one"),
        ("2026", "'run.root=\"2026\"' run.name=one"),
        ("*", "'run.root=\"*\"' run.name=one"),
        ("s3://KEY:SECRET@bucket/runs", "s3://bucket/runs/one"),
        ("s3://bucket/runs?region=x", "'s3://bucket/runs/one?region=x'"),
    ],
)
def test_a_shell_resumes_the_run_with_the_words_shown(root: str, expected: str) -> None:
    run = RunSection(name="one", root=root)
    assert run.again == expected
    resumed = load_config(None, split_words(shlex.split(run.again), resume=True)[1]).run
    assert (resumed.folder, resumed.shown) == (run.folder, run.shown)


def test_a_name_of_digits_stays_text() -> None:
    again = shlex.split(RunSection(name="7", root="runs").again)
    assert load_config(None, split_words(again, resume=True)[1]).run.name == "7"


@pytest.mark.parametrize(
    ("root", "expected"),
    [
        ("ftp://host/runs", "run.root: ftp://host/runs has an unknown scheme: use s3://, gs://, file:/// or a"),
        ("s3:///runs", "run.root: s3:///runs has no bucket: use s3://BUCKET/PREFIX"),
        ("s3://KEY@bucket/runs", "run.root: s3://bucket/runs has an incomplete key: use s3://KEY:SECRET@BUCKET"),
        ("gs://token@bucket", "run.root: gs://bucket: gs:// accepts no key but 'anonymous@': set GOOGLE_"),
        ("file://host/runs", "run.root: file://host/runs must be an absolute path on this machine: file:///PATH"),
        ("s3://bucket/runs?secret_key=HIDDEN", "run.root: s3:// has no option 'secret_key' (allowed: "),
        ("s3://KEY:HID/DEN@bucket/runs", "run.root: the s3:// URI has an invalid bucket name"),
        ("ftp://KEY:HIDDEN@host/runs", "run.root: ftp://host/runs has an unknown scheme"),
    ],
)  # fmt: skip
def test_an_invalid_uri_is_rejected_without_showing_a_key(root: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run_of(f"run.root={root}")
    assert str(caught.value).startswith(expected)
    assert "HID" not in str(caught.value) and "\n" not in str(caught.value)


def test_parent_splits_off_the_run_name() -> None:
    assert uri.parent("s3://K:S@bucket/a/b?region=x") == ("s3://K:S@bucket/a?region=x", "b")
    assert uri.parent("s3://bucket/b/") == ("s3://bucket", "b")
    with pytest.raises(ValueError, match="s3://bucket does not name a run: use s3://BUCKET/PREFIX/NAME"):
        uri.parent("s3://K:S@bucket")


def test_actor_timeout_must_exceed_the_storage_timeout() -> None:
    limits = ["run.storage_timeout_seconds=60", "cluster.timeout_seconds=60"]
    assert load_config(None, limits) != Config()
    with pytest.raises(ConfigError, match=r"storage_timeout_seconds=60 must be below cluster.timeout_seconds=60"):
        load_config(None, ["run.root=s3://bucket/runs", *limits])
