"""The folder of a run: in the file system, or in an object store with a local staging folder."""

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
HOLDER = "process {} on {}"  # text of the lock file: process id and host
LOCK = "run.lock"  # held while a process uses the folder; released by the OS when that process dies
TRIALS = "trials"  # subfolder of a sweep with the run folders of its trials, each stored by its trial


class RunFolder:
    """Local and remote location of a run's files.

    All files except checkpoints are written to ``local`` and mirrored to ``place``. Checkpoints are written to
    ``place / "checkpoints"`` directly, from the nodes that hold the networks. If ``run.root`` is a path, ``local`` and
    ``place`` are the same folder and nothing is mirrored.
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
        """Whether a run is stored here already. Raises ``StorageRefused`` if the storage cannot be used."""
        if self.root is None or self.remote is None:
            blocked = not self.local.is_dir() and (self.local.exists() or self.local.is_symlink())
            return blocked or self.written
        self.root.check()
        return bool(self.remote.files())

    @property
    def written(self) -> bool:
        """Whether the local folder has files other than the lock, which a run killed early leaves behind."""
        return self.local.is_dir() and any(path.name != LOCK for path in self.local.iterdir())

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Lock the folder against other processes; remove it afterwards if it is still empty.

        Raises ``UserError`` if another process holds the lock. Processes of different machines exclude each other on a
        shared file system with locks, but not in an object store.
        """
        path = self.local / LOCK if self.remote is None else self.local.with_name(f"{self.local.name}.lock")
        folder = path.parent
        created = [each for each in (folder, *folder.parents) if not each.exists()]
        if not folder.is_dir() and (folder.exists() or folder.is_symlink()):
            raise UserError(f"{self.shown} exists and is not a folder: choose another run.name")
        lock = FileLock(path)
        with writing(folder), suppress(Timeout):
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(blocking=False)
            with suppress(OSError):  # on a full disk: the holder's name is optional
                path.write_text(HOLDER.format(os.getpid(), socket.gethostname()), encoding="utf-8")
        if not lock.is_locked:
            holder = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else "another process"
            raise UserError(
                f"{self.shown} is in use by {holder}: wait for that run or stop it, or choose another run.name"
            )
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # while locked, so that a process waiting for it sees it removed
            for each in created:
                with suppress(OSError):  # not empty
                    each.rmdir()
            lock.release()

    def fetch(self, only: str | None = None) -> None:
        """Download the files of the run's folder, or ``only`` one of them, to ``local``, without subfolders."""
        if self.remote is None:
            return
        if only is None:
            shutil.rmtree(self.local, ignore_errors=True)  # of a killed run on this machine, possibly outdated
            self.remote.download(self.local, recursive=False)
        elif (self.remote / only).is_file():
            self.local.mkdir(parents=True, exist_ok=True)
            (self.local / only).write_bytes((self.remote / only).read_bytes())

    def fetch_trials(self) -> None:
        """Download the files of each trial's folder, without subfolders."""
        if self.remote is None:
            return
        trials = self.remote / TRIALS
        for name in trials.files():
            if name.count("/") == 1:
                path = self.local / TRIALS / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes((trials / name).read_bytes())

    def flush(self) -> None:
        """Wait until all files written so far are stored. Raises ``StorageError``."""
        if self.mirror is not None:
            self.mirror.flush()

    @contextmanager
    def mirrored(self) -> Iterator[None]:
        """Mirror ``local`` to the storage; at the end store all of it and remove the local folder.

        After a ``StorageError`` the local folder is kept, and the error names it.
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
        return StorageError(f"{error}; the run's other files are kept in {self.local}")


def config_file(run: RunSection) -> Path:
    """Return the local path of a run's config, downloaded if the run is remote; the file may not exist."""
    folder = RunFolder(run)
    if folder.exists():
        folder.fetch(CONFIG)
    return folder.local / CONFIG
