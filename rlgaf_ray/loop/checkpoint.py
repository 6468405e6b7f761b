"""Checkpoints: folders that are whole or absent, a checksum for every file; ``latest`` and ``best`` name one each."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

STATE, MANIFEST = "state.json", "manifest.json"
PREFIX, PARTIAL = "step_", ".partial"


class DamagedCheckpoint(ValueError):
    """A checkpoint whose files are not those that were written."""


class Checkpoints:
    """The ``checkpoints/`` folder of one run.

    A checkpoint is written beside its final name and renamed when complete, so that a kill at any moment leaves
    either all of it or none.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def path(self, iteration: int) -> Path:
        return self.folder / f"{PREFIX}{iteration:06d}"

    def all(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob(f"{PREFIX}*") if not path.name.endswith(PARTIAL))

    def named(self, name: str) -> Path | None:
        pointer = self.folder / name
        return self.folder / pointer.read_text().strip() if pointer.is_file() else None

    def healthy(self, until: int) -> list[Path]:
        """Those whose state says ``healthy``, of iterations up to this one, newest first."""
        return [
            path
            for path in reversed(self.all())
            if _iteration(path) <= until and json.loads((path / STATE).read_text()).get("healthy", False)
        ]

    def cut(self, iteration: int) -> None:
        """Throw away what was written after this iteration; ``latest`` and ``best`` no longer name it."""
        best = self.named("best")
        for path in self.all():
            if _iteration(path) > iteration:
                shutil.rmtree(path)
        if best is not None and _iteration(best) > iteration:
            (self.folder / "best").unlink()
        if left := self.all():
            self._point("latest", left[-1])

    def save(
        self,
        iteration: int,
        write: Callable[[Path], None],
        state: dict[str, Any],
        *,
        best: bool,
        healthy_until: int | None = None,
    ) -> Path:
        """``write`` fills the folder it is given; ``state`` is JSON and comes back from ``load_state``.

        ``healthy_until``: beside the newest and the best, the newest healthy one up to this iteration is kept, and the
        healthy ones after it.
        """
        final = self.path(iteration)
        partial = final.with_name(final.name + PARTIAL)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write(partial)
        (partial / STATE).write_text(json.dumps(state))
        manifest = {
            str(file.relative_to(partial)): _checksum(file) for file in sorted(partial.rglob("*")) if file.is_file()
        }
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
        shutil.rmtree(final, ignore_errors=True)  # of this iteration, from before a rollback
        partial.rename(final)
        self._point("latest", final)
        if best:
            self._point("best", final)
        spared = []
        if healthy_until is not None:
            first = self.healthy(healthy_until)[:1]
            spared = [path for path in self.healthy(iteration) if path >= first[0]] if first else []
        self._prune(spared)
        return final

    def load_state(self, path: Path) -> dict[str, Any]:
        """Check every file against the manifest and return the state.

        Raises ``DamagedCheckpoint`` naming the first file that is missing or changed.
        """
        try:
            manifest = json.loads((path / MANIFEST).read_text())
        except (OSError, ValueError) as error:
            raise DamagedCheckpoint(f"{path}: {MANIFEST} cannot be read ({error})") from error
        for name, checksum in manifest.items():
            file = path / name
            if not file.is_file():
                raise DamagedCheckpoint(f"{path}: {name} is missing")
            if _checksum(file) != checksum:
                raise DamagedCheckpoint(f"{path}: {name} is not what was written (its checksum differs)")
        return json.loads((path / STATE).read_text())

    def newest_usable(self) -> tuple[Path, dict[str, Any], list[str]]:
        """The newest undamaged checkpoint, its state, and what was wrong with those after it.

        Raises ``ValueError`` where there is none.
        """
        damage: list[str] = []
        for path in reversed(self.all()):
            try:
                return path, self.load_state(path), damage
            except DamagedCheckpoint as error:
                damage.append(str(error))
        reasons = "; ".join(damage) or f"{self.folder} holds none"
        raise ValueError(f"no usable checkpoint to resume from ({reasons}): start a new run under another run.name")

    def _point(self, name: str, target: Path) -> None:
        temporary = self.folder / f"{name}{PARTIAL}"
        temporary.write_text(target.name + "\n")
        os.replace(temporary, self.folder / name)

    def _prune(self, spared: Sequence[Path]) -> None:
        best = self.named("best")
        for path in self.all()[: -self.keep]:
            if path != best and path not in spared:
                shutil.rmtree(path)


def _iteration(path: Path) -> int:
    return int(path.name.removeprefix(PREFIX))


def _checksum(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
