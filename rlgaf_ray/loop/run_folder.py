"""The folder of one run: in the file system, or in an object store with a local folder on the way to it."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from rlgaf_ray.config.run import RunSection
from rlgaf_ray.data.mirror import Mirror
from rlgaf_ray.data.remote import Remote, StorageError
from rlgaf_ray.data.storage import Place, writing
from rlgaf_ray.errors import UserError

CONFIG = "config.yaml"
LOCK = "run.lock"  # held while a process uses the folder; the system gives it back when that process dies
TRIALS = "trials"  # in a sweep's folder: a run folder each, which each trial stores by itself


class RunFolder:
    """Everything but checkpoints is written into ``local`` by those who know of no storage, and mirrored from there.

    Checkpoints go to ``place / "checkpoints"`` at once, from the nodes that hold the networks. Where ``run.root`` is a
    path, ``local`` and ``place`` are one folder and nothing is mirrored.
    """

    def __init__(self, run: RunSection) -> None:
        self.local = run.folder
        self.shown = run.shown
        self.remote = None if run.remote is None else Remote(run.remote, run.storage_timeout_seconds)
        self.root = None if run.remote is None else Remote(run.root, run.storage_timeout_seconds)
        self.mirror = None if self.remote is None else Mirror(self.local, self.remote, without=TRIALS)

    @property
    def place(self) -> Place:
        return self.local if self.remote is None else self.remote

    def exists(self) -> bool:
        """Raises ``StorageRefused`` where a storage cannot be used."""
        if self.root is None or self.remote is None:
            in_the_way = not self.local.is_dir() and (self.local.exists() or self.local.is_symlink())
            return in_the_way or self.written
        self.root.check()
        return bool(self.remote.files())

    @property
    def written(self) -> bool:
        """Whether the folder on this machine has anything but its lock, which a run that was killed early leaves."""
        return self.local.is_dir() and any(path.name != LOCK for path in self.local.iterdir())

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """No other process of this machine uses the folder meanwhile; one that stays empty is removed again.

        Raises ``UserError`` where another process has it. Two machines exclude each other where they share the folder
        as a file system with locks, not in an object store.
        """
        path = self.local / LOCK if self.remote is None else self.local.with_name(f"{self.local.name}.lock")
        folder = path.parent
        made = [each for each in (folder, *folder.parents) if not each.exists()]
        if not folder.is_dir() and (folder.exists() or folder.is_symlink()):
            raise UserError(f"{self.shown} exists and is no folder: choose another run.name")
        lock = FileLock(path)
        with writing(folder), suppress(Timeout):
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(blocking=False)
            with suppress(OSError):  # a disk without room: what to say to others is no reason to end
                path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        if not lock.is_locked:
            holder = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else "another process"
            raise UserError(
                f"{self.shown} is in use by {holder}: wait for that run or stop it, or choose another run.name"
            )
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # while it is held: whoever opened it meanwhile sees that it is gone
            for each in made:
                with suppress(OSError):  # not empty
                    each.rmdir()
            lock.release()

    def fetch(self, only: str | None = None) -> None:
        """Make ``local`` hold what the run stored right in its folder (or one file of it); subfolders stay there."""
        if self.remote is None:
            return
        if only is None:
            shutil.rmtree(self.local, ignore_errors=True)  # of a run that was killed on this machine: it may be behind
            self.remote.download(self.local, recursive=False)
        elif (self.remote / only).is_file():
            self.local.mkdir(parents=True, exist_ok=True)
            (self.local / only).write_bytes((self.remote / only).read_bytes())

    def fetch_trials(self) -> None:
        """Bring what each trial stored right in its own folder to here."""
        if self.remote is None:
            return
        trials = self.remote / TRIALS
        for name in trials.files():
            if name.count("/") == 1:
                path = self.local / TRIALS / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes((trials / name).read_bytes())

    def flush(self) -> None:
        """Return once all that was written so far is where it belongs. Raises ``StorageError``."""
        if self.mirror is not None:
            self.mirror.flush()

    @contextmanager
    def mirrored(self) -> Iterator[None]:
        """Until the end of the block; then all of it is stored, and the local folder is removed.

        What a ``StorageError`` kept from being stored stays in the local folder, and the error says so.
        """
        if self.mirror is None:
            yield
            return
        try:
            with self.mirror:
                yield
        except StorageError as error:
            raise self._kept(error) from error
        except BaseException:
            self._store_all()
            raise
        self._store_all()

    def _store_all(self) -> None:
        try:
            self.flush()
        except StorageError as error:
            raise self._kept(error) from error
        shutil.rmtree(self.local, ignore_errors=True)

    def _kept(self, error: StorageError) -> StorageError:
        return StorageError(f"{error}; what else the run wrote is kept in {self.local}")


def config_file(run: RunSection) -> Path:
    """The config that a run was started with, brought here where the run is kept elsewhere; it may not be there."""
    folder = RunFolder(run)
    if folder.exists():
        folder.fetch(CONFIG)
    return folder.local / CONFIG
