"""A local folder whose files are sent to a remote one as they change, in the background and when asked."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from pathlib import Path

from rlgaf_ray.data.remote import Remote, StorageError

EVERY_SECONDS = 10.0
LARGEST_SHARE = 0.05  # of the time that background passes take
STILL_SECONDS = 1.0  # unchanged for so long, a file is taken for whole; lines of .jsonl are whole when they are there


class Mirror:
    """Sends new and changed files of ``local``; one that is deleted there stays in the storage.

    In the background a failure is no error: the files remain to be sent, and ``flush`` insists on it.
    """

    def __init__(
        self, local: Path, remote: Remote, *, every: float = EVERY_SECONDS, without: str | None = None
    ) -> None:
        """``without``: a subfolder that others send."""
        self.local = local
        self.remote = remote
        self.every = every
        self.without = without
        self.sent: dict[str, tuple[int, int]] = {}  # size and time of change of each file as it was sent
        self.sending = threading.Lock()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._work, name="storage-mirror", daemon=True)

    def __enter__(self) -> Mirror:
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends the background work; the last ``flush`` is the caller's."""
        self.ended.set()
        self.thread.join()

    def keep_what_is_there(self) -> None:
        """The files that are there now came from the storage."""
        self.sent = self._states()

    def flush(self) -> None:
        """Return once every file is in the storage as it is here. Raises ``StorageError``."""
        with self.sending:
            self._send(self.remote, self._changed())

    def _work(self) -> None:
        impatient = replace(self.remote, timeout=min(self.every, self.remote.timeout))
        pause = self.every
        while not self.ended.wait(pause):
            start = time.monotonic()
            with self.sending:
                still = {name: state for name, state in self._changed().items() if _still(name, state)}
                try:
                    self._send(impatient, still)
                except StorageError:
                    continue  # the files are still counted as changed
            pause = max(self.every, (time.monotonic() - start) / LARGEST_SHARE)

    def _send(self, remote: Remote, changed: dict[str, tuple[int, int]]) -> None:
        for name, state in changed.items():
            if self.ended.is_set() and remote is not self.remote:
                return  # the background gives way to the last flush
            (remote / name).upload(self.local / name)
            self.sent[name] = state

    def _changed(self) -> dict[str, tuple[int, int]]:
        return {name: state for name, state in self._states().items() if self.sent.get(name) != state}

    def _states(self) -> dict[str, tuple[int, int]]:
        states = {}
        for folder, subfolders, names in os.walk(self.local):
            if Path(folder) == self.local and self.without in subfolders:
                subfolders.remove(self.without)
            for name in names:
                path = Path(folder) / name
                try:
                    status = path.stat()
                except FileNotFoundError:  # removed since the folder was listed
                    continue
                states[path.relative_to(self.local).as_posix()] = (status.st_size, status.st_mtime_ns)
        return states


def _still(name: str, state: tuple[int, int]) -> bool:
    return name.endswith(".jsonl") or time.time_ns() - state[1] > STILL_SECONDS * 1e9
