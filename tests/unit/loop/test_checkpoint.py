from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from rlgaf_ray.data.remote import Remote, StorageError
from rlgaf_ray.data.storage import Place
from rlgaf_ray.errors import UserError
from rlgaf_ray.loop.checkpoint import Checkpoints, DamagedCheckpoint


def save(checkpoints: Checkpoints, iteration: int, *, best: bool = False) -> Place:
    def write(folder: Place) -> None:
        if isinstance(folder, Path):
            (folder / "learner").mkdir()
        (folder / "learner" / "weights").write_text(f"weights of {iteration}")

    return checkpoints.save(iteration, write, {"iteration": iteration}, best=best)


@pytest.mark.parametrize("remote", [False, True])
def test_the_newest_and_the_best_are_kept(tmp_path: Path, remote: bool) -> None:
    folder = Remote(f"file://{tmp_path}") if remote else tmp_path
    checkpoints = Checkpoints(folder, keep=2)
    for iteration in range(1, 6):
        save(checkpoints, iteration, best=iteration == 2)
    assert [path.name for path in checkpoints.all()] == ["step_000002", "step_000004", "step_000005"]
    assert checkpoints.named("best") == folder / "step_000002"
    assert checkpoints.named("latest") == folder / "step_000005"
    assert checkpoints.newest_usable()[1] == {"iteration": 5}
    checkpoints.discard_after(3)
    assert [path.name for path in checkpoints.all()] == ["step_000002"]
    assert checkpoints.named("latest") == checkpoints.named("best") == folder / "step_000002"


def test_the_checkpoint_just_written_is_kept(tmp_path: Path) -> None:
    """Damaged checkpoints of later iterations count as newer."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    save(checkpoints, 2)
    (Path(save(checkpoints, 4)) / "model").write_text("damaged")  # type: ignore[arg-type]
    final = save(checkpoints, 3)
    assert (Path(final) / "state.json").is_file()  # type: ignore[arg-type]
    assert (tmp_path / "latest").read_text() == "step_000003\n"


def test_a_kill_while_a_checkpoint_is_replaced_leaves_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a rollback an iteration is saved again."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    save(checkpoints, 1)

    def killed(folder: Place) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rlgaf_ray.loop.checkpoint.remove", killed)
    with pytest.raises(KeyboardInterrupt):
        save(checkpoints, 1)
    path, state, damage = Checkpoints(tmp_path, keep=1).newest_usable()
    assert (path.name, state["iteration"], damage) == ("step_000001", 1, [])


def test_a_write_that_fails_leaves_no_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    save(checkpoints, 1)

    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError(errno.ENOSPC, "disk full")

    with pytest.raises(StorageError, match="step_000002 could not be written: disk full"):
        checkpoints.save(2, fail, {"iteration": 2}, best=True)
    assert [path.name for path in checkpoints.all()] == ["step_000001"]
    assert checkpoints.named("best") is None
    save(checkpoints, 2)  # the leftover does not matter
    assert checkpoints.newest_usable()[1] == {"iteration": 2}


def test_a_partly_removed_checkpoint_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    save(checkpoints, 1)

    def killed(folder: Path) -> None:
        (folder / "learner" / "weights").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            save(checkpoints, 2)
    assert [path.name for path in checkpoints.all()] == ["step_000002"]
    save(checkpoints, 3)
    assert {path.name for path in tmp_path.iterdir()} == {"step_000003", "latest"}


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "manifest"])
def test_damage_is_reported_and_the_previous_checkpoint_is_used(tmp_path: Path, damage: str) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    save(checkpoints, 1)
    save(checkpoints, 2)
    file = tmp_path / "step_000002" / "learner" / "weights"
    match damage:
        case "truncate":
            file.write_text("weights")
        case "flip":
            file.write_text("weights of 3")
        case "remove":
            file.unlink()
        case "manifest":
            (file.parents[1] / "manifest.json").write_text("{")
    path, state, found = checkpoints.newest_usable()
    assert (path.name, state) == ("step_000001", {"iteration": 1})
    name = "manifest.json cannot be read" if damage == "manifest" else "learner/weights is"
    assert len(found) == 1 and "step_000002" in found[0] and name in found[0]


def test_no_usable_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    with pytest.raises(UserError, match=r"no usable checkpoint to resume from \(.* has none\)"):
        checkpoints.newest_usable()
    save(checkpoints, 1)
    (tmp_path / "step_000001" / "learner" / "weights").unlink()
    with pytest.raises(UserError, match=r"learner/weights is missing.*another run.name"):
        checkpoints.newest_usable()
    with pytest.raises(DamagedCheckpoint):
        checkpoints.load_state(checkpoints.path(1))


def test_an_object_store_keeps_the_old_checkpoint_until_the_new_one_is_complete(tmp_path: Path) -> None:
    folder = Remote(f"file://{tmp_path}")
    flushed: list[list[str]] = []
    checkpoints = Checkpoints(
        folder, keep=2, flush=lambda: flushed.append([name for name in folder.files() if "manifest" in name])
    )
    save(checkpoints, 1, best=True)
    assert flushed == [[]], "the run's other files are stored before the checkpoint"

    def fail(place: Remote) -> None:
        (place / "half").write_text("x")
        raise OSError("no network")

    for iteration in (1, 2):
        with pytest.raises(StorageError, match="no network"):
            checkpoints.save(iteration, fail, {"iteration": iteration}, best=True)
        assert checkpoints.all() == [folder / "step_000001"]
        assert checkpoints.newest_usable() == (folder / "step_000001", {"iteration": 1}, [])
    save(checkpoints, 1)  # as after a rollback
    assert checkpoints.all() == [folder / "step_000001-1"]
    assert checkpoints.named("latest") == checkpoints.named("best") == folder / "step_000001-1"
    assert not any("half" in name for name in folder.files()), "leftovers of a failed write are removed by the next one"
    save(checkpoints, 2)
    assert checkpoints.healthy(2) == [] and [path.name for path in checkpoints.all()] == [
        "step_000001-1",
        "step_000002",
    ]


def test_healthy_checkpoints_are_kept_until_one_is_old_enough(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)

    def kept(iteration: int, healthy_until: int) -> list[int]:
        state = {"iteration": iteration, "healthy": True}
        checkpoints.save(iteration, lambda place: None, state, best=False, healthy_until=healthy_until)
        return [int(path.name.removeprefix("step_")) for path in checkpoints.all()]

    assert kept(5, 0) == [5]
    assert kept(6, 1) == [5, 6]  # no checkpoint is as old as 1: the run was rolled back to 5
    assert kept(8, 5) == [5, 6, 8]
    assert kept(9, 7) == [6, 8, 9]
