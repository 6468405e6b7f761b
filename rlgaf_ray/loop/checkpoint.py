"""Checkpoints: folders that are whole or absent, a checksum for every file; ``latest`` and ``best`` name one each."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

from rlgaf_ray.data.handover import checksum, checksums
from rlgaf_ray.data.remote import Remote
from rlgaf_ray.data.storage import Place, remove, replace_text, writing
from rlgaf_ray.errors import UserError

STATE, MANIFEST = "state.json", "manifest.json"
PREFIX, PARTIAL, AGAIN = "step_", ".partial", "-"
NAME = re.compile(rf"{PREFIX}[0-9]+(?:{AGAIN}[0-9]+)?")


class DamagedCheckpoint(UserError):
    """A checkpoint whose files are not those that were written."""


class Checkpoints:
    """The ``checkpoints/`` folder of one run.

    A checkpoint is written beside its final name and renamed when complete, so that a kill at any moment leaves
    either all of it or none. An object store renames nothing: there a checkpoint is one once it has its manifest, which
    is written last and removed first.
    """

    def __init__(self, folder: Place, *, keep: int, flush: Callable[[], None] = lambda: None) -> None:
        """``flush``: stores what else the run wrote; a complete checkpoint never lacks the metrics that led to it."""
        self.folder = folder
        self.keep = keep
        self.flush = flush

    def path(self, iteration: int) -> Place:
        return self.folder / f"{PREFIX}{iteration:06d}"

    def all(self) -> list[Place]:
        """Complete checkpoints, oldest first."""
        if isinstance(self.folder, Path):
            return sorted(path for path in self.folder.glob(f"{PREFIX}*") if NAME.fullmatch(path.name))
        manifests = [name.split("/") for name in self.folder.files() if name.startswith(PREFIX)]
        return sorted(
            self.folder / parts[0] for parts in manifests if parts[1:] == [MANIFEST] and NAME.fullmatch(parts[0])
        )

    def named(self, name: str) -> Place | None:
        """Where ``latest`` or ``best`` points. Raises ``DamagedCheckpoint`` for one that names no checkpoint here."""
        pointer = self.folder / name
        if not pointer.is_file():
            return None
        target = pointer.read_bytes().decode(errors="replace").strip()
        if not NAME.fullmatch(target):
            raise DamagedCheckpoint(f"{pointer} names no checkpoint ({target[:40]!r}): write the name of one into it")
        return self.folder / target

    def healthy(self, until: int) -> list[Place]:
        """Those whose state says ``healthy``, of iterations up to this one, newest first."""
        return [path for path in reversed(self.all()) if _iteration(path) <= until and self._says_healthy(path)]

    def newest_healthy(self, until: int) -> tuple[tuple[Place, dict[str, Any]] | None, list[DamagedCheckpoint]]:
        """The newest undamaged checkpoint of ``healthy(until)`` with its state, and the errors of damaged ones."""
        damage: list[DamagedCheckpoint] = []
        for path in self.healthy(until):
            try:
                return (path, self.load_state(path)), damage
            except DamagedCheckpoint as error:
                damage.append(error)
        return None, damage

    def cut(self, iteration: int) -> None:
        """Throw away what was written after this iteration; ``latest`` and ``best`` no longer name it."""
        best = self.named("best")
        for path in self.all():
            if _iteration(path) > iteration:
                self._remove(path)
        if best is not None and _iteration(best) > iteration:
            remove(self.folder / "best")
        if left := self.all():
            self._point("latest", left[-1])

    def save(
        self,
        iteration: int,
        write: Callable[[Any], None],
        state: dict[str, Any],
        *,
        best: bool,
        healthy_until: int | None = None,
    ) -> Place:
        """``write`` fills the folder it is given; ``state`` is JSON and comes back from ``load_state``.

        ``healthy_until``: beside the newest and the best, the newest healthy one up to this iteration is kept, and the
        healthy ones after it; all healthy ones where none is as old. Raises ``StorageError`` where it cannot be
        written; the others stay as they are.
        """
        with writing(self.path(iteration)):
            final = self._write(iteration, write, state)
            self._point("latest", final)
            if isinstance(final, Remote):
                self._replace(final)
            if best:
                self._point("best", final)
        spared: list[Place] = []
        if healthy_until is not None:
            first = self.healthy(healthy_until)[:1]
            after = self.healthy(iteration)
            spared = after[: after.index(first[0]) + 1] if first else after
        self._prune(spared)
        return final

    def _write(self, iteration: int, write: Callable[[Any], None], state: dict[str, Any]) -> Place:
        final = self.path(iteration)
        if isinstance(final, Path):
            for left in final.parent.glob(f"{PREFIX}*{PARTIAL}"):  # by a kill, or by a disk that was full
                remove(left)
            beside = final.with_name(final.name + PARTIAL)
            beside.mkdir(parents=True)
            partial: Place = beside
        else:
            final = partial = self._free(iteration)
        write(partial)
        (partial / STATE).write_text(json.dumps(state), encoding="utf-8")
        self.flush()
        (partial / MANIFEST).write_text(json.dumps(checksums(partial), indent=1), encoding="utf-8")
        if isinstance(partial, Path) and isinstance(final, Path):
            if final.is_dir():  # of this iteration, from before a rollback
                self._remove(final)
            partial.rename(final)
        return final

    def intact(self) -> str:
        """What is left to go on from, in a few words."""
        latest = self.named("latest")
        return f"the last checkpoint, {latest.name}, is intact" if latest else "no checkpoint was written yet"

    def load_state(self, path: Place) -> dict[str, Any]:
        """Check every file against the manifest and return the state.

        Raises ``DamagedCheckpoint`` naming the first file that is missing or changed.
        """
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise DamagedCheckpoint(f"{path}: {MANIFEST} cannot be read ({error})") from error
        if not isinstance(manifest, dict) or STATE not in manifest or not all(map(_stays_inside, manifest)):
            raise DamagedCheckpoint(f"{path}: {MANIFEST} is no list of this checkpoint's files")
        for name, digest in manifest.items():
            file = path / name
            if not file.is_file():
                raise DamagedCheckpoint(f"{path}: {name} is missing")
            if checksum(file) != digest:
                raise DamagedCheckpoint(f"{path}: {name} is not what was written (its checksum differs)")
        return self._state(path)

    def _state(self, path: Place) -> dict[str, Any]:
        try:
            state = json.loads((path / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise DamagedCheckpoint(f"{path}: {STATE} cannot be read ({error})") from error
        if not isinstance(state, dict) or not isinstance(state.get("iteration"), int):
            raise DamagedCheckpoint(f"{path}: {STATE} is no state of a run")
        return state

    def _says_healthy(self, path: Place) -> bool:
        try:
            return bool(self._state(path).get("healthy", False))
        except DamagedCheckpoint:
            return False  # nothing to go back to; whoever resumes from it is told why

    def newest_usable(self) -> tuple[Place, dict[str, Any], list[str]]:
        """The newest undamaged checkpoint, its state, and what was wrong with those after it.

        Raises ``UserError`` where there is none.
        """
        damage: list[str] = []
        for path in reversed(self.all()):
            try:
                return path, self.load_state(path), damage
            except DamagedCheckpoint as error:
                damage.append(str(error))
        reasons = "; ".join(damage) or f"{self.folder} holds none"
        raise UserError(f"no usable checkpoint to resume from ({reasons}): start a new run under another run.name")

    def _point(self, name: str, target: Place) -> None:
        text = target.name + "\n"
        if isinstance(self.folder, Path):
            replace_text(self.folder / name, text)
        else:
            (self.folder / name).write_text(text, encoding="utf-8")

    def _prune(self, spared: Sequence[Place]) -> None:
        best = self.named("best")
        for path in self.all()[: -self.keep]:
            if path != best and path not in spared:
                self._remove(path)

    def _free(self, iteration: int) -> Place:
        """A name in an object store that no checkpoint has; one of this iteration may be there, from before a rollback.

        What a kill left of others is removed.
        """
        assert isinstance(self.folder, Remote)
        complete = {path.name for path in self.all()}
        for name in {name.partition("/")[0] for name in self.folder.files() if name.startswith(PREFIX)} - complete:
            remove(self.folder / name)
        name = self.path(iteration).name
        again = (f"{name}{AGAIN}{number}" for number in count(1))
        return self.folder / next(free for free in chain([name], again) if free not in complete)

    def _replace(self, final: Remote) -> None:
        """What a rename does in the file system: the checkpoint of the same iteration gives way to this one."""
        for path in self.all():
            if path != final and _iteration(path) == _iteration(final):
                if self.named("best") == path:
                    self._point("best", final)
                self._remove(path)

    def _remove(self, path: Place) -> None:
        """A kill in the middle of it leaves nothing that looks like a checkpoint."""
        if isinstance(path, Remote):
            remove(path / MANIFEST)
            remove(path)
        else:
            remove(path.rename(path.with_name(f"{path.name}.old{PARTIAL}")))


def _stays_inside(name: str) -> bool:
    return not name.startswith("/") and ".." not in name.split("/")


def _iteration(path: Place) -> int:
    return int(path.name.removeprefix(PREFIX).partition(AGAIN)[0])
