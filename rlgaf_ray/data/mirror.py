"""Mirror a local folder to a remote one: upload changed files in the background and on ``flush``."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from pathlib import Path

from rlgaf_ray.data.remote import Remote, StorageError

EVERY_SECONDS = 10.0
LARGEST_SHARE = 0.05  # upper bound on the fraction of time spent on background uploads
STILL_SECONDS = 1.0  # a file unchanged for this long is considered complete; .jsonl files are appended line by line


class Mirror:
    """Uploads new and changed files of ``local``. Deleted files stay in the storage.

    A failed background upload is ignored and retried; a failed ``flush`` raises.
    """

    def __init__(
        self, local: Path, remote: Remote, *, every: float = EVERY_SECONDS, without: str | None = None
    ) -> None:
        """``without``: a subfolder to skip, because other processes upload it."""
        self.local = local
        self.remote = remote
        self.every = every
        self.without = without
        self.sent: dict[str, tuple[int, int]] = {}  # size and mtime (ns) of each uploaded file
        self.sending = threading.Lock()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._work, name="storage-mirror", daemon=True)

    def __enter__(self) -> Mirror:
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop the background thread. The caller must call ``flush`` for the last changes."""
        self.ended.set()
        self.thread.join()

    def keep_what_is_there(self) -> None:
        """Mark the present files as uploaded, after a download from the storage."""
        self.sent = self._states()

    def flush(self) -> None:
        """Upload all changed files. Raises ``StorageError``."""
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
                return  # the final flush uploads the rest
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
                except FileNotFoundError:  # deleted after listing
                    continue
                states[path.relative_to(self.local).as_posix()] = (status.st_size, status.st_mtime_ns)
        return states


def _still(name: str, state: tuple[int, int]) -> bool:
    return name.endswith(".jsonl") or time.time_ns() - state[1] > STILL_SECONDS * 1e9
