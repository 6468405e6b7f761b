"""Checkpoints: atomically written folders with file checksums, and the pointers ``latest`` and ``best``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

from rlgaf_ray.data.handover import checksum, checksums
from rlgaf_ray.data.remote import Remote
from rlgaf_ray.data.storage import Place, remove, replace_text, writing
from rlgaf_ray.errors import UserError

STATE, MANIFEST = "state.json", "manifest.json"
PROVENANCE = "provenance"  # key of the state
PREFIX, PARTIAL, AGAIN = "step_", ".partial", "-"
NAME = re.compile(rf"{PREFIX}[0-9]+(?:{AGAIN}[0-9]+)?")


class DamagedCheckpoint(UserError):
    """A checkpoint with a missing, changed or unreadable file."""


class Checkpoints:
    """The ``checkpoints/`` folder of one run.

    A checkpoint is written under a temporary name and renamed when complete, so that a kill at any time leaves either
    all of it or nothing. An object store has no rename: there a checkpoint is complete once it has its manifest, which
    is written last and removed first.
    """

    def __init__(self, folder: Place, *, keep: int, flush: Callable[[], None] = lambda: None) -> None:
        """``flush`` stores the run's other files first, so that a checkpoint never precedes its own metrics."""
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
        """Resolve ``latest`` or ``best``; None without it. Raises ``DamagedCheckpoint`` for an invalid pointer."""
        pointer = self.folder / name
        if not pointer.is_file():
            return None
        target = pointer.read_bytes().decode(errors="replace").strip()
        if not NAME.fullmatch(target):
            raise DamagedCheckpoint(
                f"{pointer} does not name a checkpoint ({target[:40]!r}): write its folder name into it"
            )
        return self.folder / target

    def healthy(self, until: int) -> list[Place]:
        """Checkpoints up to this iteration whose state is marked healthy, newest first."""
        return [path for path in reversed(self.all()) if _iteration(path) <= until and self._is_healthy(path)]

    def newest_healthy(self, until: int) -> tuple[tuple[Place, dict[str, Any]] | None, list[DamagedCheckpoint]]:
        """Find the newest intact one of ``healthy(until)`` with its state; also return the errors of damaged ones."""
        return self._newest_intact(self.healthy(until))

    def discard_after(self, iteration: int) -> None:
        """Remove the checkpoints after this iteration, and update ``latest`` and ``best``."""
        best = self.named("best")
        for path in self.all():
            if _iteration(path) > iteration:
                self._remove(path)
        if best is not None and _iteration(best) > iteration:
            remove(self.folder / "best")
        if remaining := self.all():
            self._point("latest", remaining[-1])

    def save(
        self,
        iteration: int,
        write: Callable[[Any], None],
        state: dict[str, Any],
        *,
        best: bool,
        healthy_until: int | None = None,
    ) -> Place:
        """Write a checkpoint: ``write`` fills its folder, ``state`` (JSON) is returned by ``load_state``.

        Older checkpoints are pruned, except the newest ``keep`` and the best. With ``healthy_until`` also the newest
        healthy one up to that iteration is kept, and all healthy ones after it; if none is that old, all healthy ones.
        Raises ``StorageError`` if the checkpoint cannot be written; existing ones are then unchanged.
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
        self._prune([final, *spared])
        return final

    def _write(self, iteration: int, write: Callable[[Any], None], state: dict[str, Any]) -> Place:
        final = self.path(iteration)
        if isinstance(final, Path):
            for leftover in final.parent.glob(f"{PREFIX}*{PARTIAL}"):  # of a kill or a full disk
                remove(leftover)
            temporary = final.with_name(final.name + PARTIAL)
            temporary.mkdir(parents=True)
            partial: Place = temporary
        else:
            final = partial = self._free(iteration)
        write(partial)
        (partial / STATE).write_text(json.dumps(state), encoding="utf-8")
        self.flush()
        (partial / MANIFEST).write_text(json.dumps(checksums(partial), indent=1), encoding="utf-8")
        if isinstance(partial, Path) and isinstance(final, Path):
            replaced = final.rename(_old(final)) if final.is_dir() else None  # from before a rollback
            partial.rename(final)
            if replaced is not None:
                remove(replaced)
        return final

    def intact(self) -> str:
        """Describe the checkpoint that the run can be resumed from, for a message."""
        latest = self.named("latest")
        return f"the last checkpoint, {latest.name}, is intact" if latest else "no checkpoint was written yet"

    def load_state(self, path: Place) -> dict[str, Any]:
        """Verify every file against the manifest and return the state.

        Raises ``DamagedCheckpoint`` with the first file that is missing or changed.
        """
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise DamagedCheckpoint(f"{path}: {MANIFEST} cannot be read ({error})") from error
        if not isinstance(manifest, dict) or STATE not in manifest or not all(map(_stays_inside, manifest)):
            raise DamagedCheckpoint(f"{path}: {MANIFEST} is not a list of this checkpoint's files")
        for name, digest in manifest.items():
            file = path / name
            if not file.is_file():
                raise DamagedCheckpoint(f"{path}: {name} is missing")
            if checksum(file) != digest:
                raise DamagedCheckpoint(f"{path}: {name} is corrupted (checksum mismatch)")
        return self._state(path)

    def provenance(self) -> dict[str, str]:
        """Return the provenance in the checkpoint that ``latest`` names; empty without one.

        The checkpoint's files are not verified. Raises ``DamagedCheckpoint`` if its state is not JSON.
        """
        latest = self.named("latest")
        if latest is None or not (latest / STATE).is_file():
            return {}
        try:
            return dict(json.loads((latest / STATE).read_text(encoding="utf-8")).get(PROVENANCE, {}))
        except ValueError as error:
            raise DamagedCheckpoint(f"{latest / STATE} is damaged: {error}") from None

    def _newest_intact(
        self, paths: Iterable[Place]
    ) -> tuple[tuple[Place, dict[str, Any]] | None, list[DamagedCheckpoint]]:
        """Return the first intact checkpoint with its state, and the errors of the damaged ones before it."""
        damage: list[DamagedCheckpoint] = []
        for path in paths:
            try:
                return (path, self.load_state(path)), damage
            except DamagedCheckpoint as error:
                damage.append(error)
        return None, damage

    def _state(self, path: Place) -> dict[str, Any]:
        try:
            state = json.loads((path / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise DamagedCheckpoint(f"{path}: {STATE} cannot be read ({error})") from error
        if not isinstance(state, dict) or not isinstance(state.get("iteration"), int):
            raise DamagedCheckpoint(f"{path}: {STATE} is not the state of a run")
        return state

    def _is_healthy(self, path: Place) -> bool:
        try:
            return bool(self._state(path).get("healthy", False))
        except DamagedCheckpoint:
            return False  # not a rollback target; resuming from it reports the damage

    def newest_usable(self) -> tuple[Place, dict[str, Any], list[str]]:
        """Find the newest intact checkpoint and its state; also return the errors of newer, damaged ones.

        Raises ``UserError`` if there is none.
        """
        found, errors = self._newest_intact(reversed(self.all()))
        damage = [str(error) for error in errors]
        if found is not None:
            return *found, damage
        reasons = "; ".join(damage) or f"{self.folder} has none"
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
        """Return an unused name in an object store, and remove leftovers of killed writes.

        A checkpoint of the same iteration, from before a rollback, may have the default name.
        """
        assert isinstance(self.folder, Remote)
        complete = {path.name for path in self.all()}
        for name in {name.partition("/")[0] for name in self.folder.files() if name.startswith(PREFIX)} - complete:
            remove(self.folder / name)
        name = self.path(iteration).name
        again = (f"{name}{AGAIN}{number}" for number in count(1))
        return self.folder / next(free for free in chain([name], again) if free not in complete)

    def _replace(self, final: Remote) -> None:
        """Remove another checkpoint of the same iteration, as a rename does in the file system."""
        for path in self.all():
            if path != final and _iteration(path) == _iteration(final):
                if self.named("best") == path:
                    self._point("best", final)
                self._remove(path)

    def _remove(self, path: Place) -> None:
        """Remove a checkpoint so that a kill at any time leaves nothing that looks like one."""
        if isinstance(path, Remote):
            remove(path / MANIFEST)
            remove(path)
        else:
            remove(path.rename(_old(path)))


def _old(path: Path) -> Path:
    return path.with_name(f"{path.name}.old{PARTIAL}")


def _stays_inside(name: str) -> bool:
    return not name.startswith("/") and ".." not in name.split("/")


def _iteration(path: Place) -> int:
    return int(path.name.removeprefix(PREFIX).partition(AGAIN)[0])
