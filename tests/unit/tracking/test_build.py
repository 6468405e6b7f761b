"""Building the trackers of ``tracking.to``: missing packages, custom trackers, and secrets."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rlgaf_ray.config import load_config
from rlgaf_ray.errors import UserError
from rlgaf_ray.testing import RecordingTracker
from rlgaf_ray.tracking import build
from rlgaf_ray.tracking.base import Tracker
from rlgaf_ray.tracking.build import TRACKERS, make_trackers, open_trackers

OWN = """
from rlgaf_ray.tracking.base import Tracker

class Lines(Tracker):
    def log(self, iteration, metrics):
        print(iteration, metrics)

class Other:
    def log(self, iteration, metrics): ...

class NeedsArgument(Tracker):
    def __init__(self, address): ...
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_tracker.py").write_text(OWN)
    (tmp_path / "broken_tracker.py").write_text("import no_such_package")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.delitem(sys.modules, "own_tracker", raising=False)


@pytest.mark.parametrize("name", ["own_tracker:Lines", "own_tracker.py:Lines"])
def test_a_custom_tracker_is_loaded_from_the_working_directory(own: None, name: str) -> None:
    (made,) = make_trackers([name]).values()
    assert type(made).__name__ == "Lines" and isinstance(made, Tracker)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("wnadb", "tracking.to=wnadb is unknown: use tensorboard, wandb, mlflow, trackio, or module:Class"),
        ("no_such_module:Tracker", "no_such_module cannot be imported: ModuleNotFoundError: No module named"),
        ("no_such_file.py:Tracker", "no_such_file.py cannot be imported: FileNotFoundError"),
        ("broken_tracker:Tracker", "broken_tracker cannot be imported: ModuleNotFoundError: No module named 'no_such"),
        ("own_tracker:Nothing", "tracking.to=own_tracker:Nothing: own_tracker has no Nothing"),
        ("own_tracker:", "'own_tracker:' names no object: write module:name or file.py:name"),
        ("own_tracker:Other", "tracking.to=own_tracker:Other is not a tracker: derive it from"),
        ("own_tracker:NeedsArgument", "cannot create the tracker: TypeError"),
    ],
)
def test_an_invalid_tracker_name_gives_one_line(own: None, name: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        make_trackers([name])
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_package_names_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf'{name} is not installed: pip install -e "\.\[{name}\]"'):
        make_trackers([name])


def test_only_custom_trackers_are_listed_as_risks() -> None:
    config = load_config(None, ["tracking.to=[tensorboard, 'own_tracker:Lines']"])
    assert config.tracking.risks == ["tracking.to=own_tracker:Lines: its Python code will run"]


def test_a_tracker_gets_the_config_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEAM_SERVICE_TOKEN", "0123456789abcdef")
    keys = ["run.root=s3://user:pass@bucket/runs", "model.generator=org/0123456789abcdef"]
    config = load_config(None, [*keys, "tracking.to=[]"])
    seen = RecordingTracker()
    open_trackers(config, tmp_path, [seen]).close()
    assert seen.run is not None
    assert seen.run.config["run"]["root"] == "s3://bucket/runs"
    assert seen.run.config["model"]["generator"] == "org/***"
    assert seen.run.config["generator"]["learning_rate"] == config.generator.learning_rate


def test_trackers_of_the_same_class_get_numbered_names() -> None:
    one, other, third = (TRACKERS["tensorboard"]() for _ in range(3))
    made = make_trackers(["tensorboard", one, other, third])
    name = type(one).__name__
    assert list(made) == ["tensorboard", name, f"{name}_2", f"{name}_3"]
    assert list(made.values())[1:] == [one, other, third]
