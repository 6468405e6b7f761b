"""Content-addressed cache files: hashing, atomic writes and locks."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from rlgaf_ray.data.storage import writing
from rlgaf_ray.errors import UserError

LONGEST_WAIT = 24 * 3600.0  # seconds; the OS releases the lock of a process that dies


def content_hash(parts: Iterable[str]) -> str:
    """Return the hex SHA-256 of the parts, each prefixed with its length."""
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Write a temporary file beside ``path`` with ``write``, then rename it, so that readers never see a partial file.

    Raises ``StorageError`` if it cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def made_once(target: Path, *, wait: float = LONGEST_WAIT) -> Iterator[None]:
    """Hold a file lock for ``target``, so that only one process at a time builds it.

    Raises ``UserError`` if the lock is not free after ``wait`` seconds.
    """
    lock = FileLock(target.with_name(target.name + ".lock"))
    with writing(target), suppress(Timeout):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    if not lock.is_locked:
        print(f"another process is building {target}: waiting for it", flush=True)
        try:
            lock.acquire(timeout=wait)
        except Timeout:
            raise UserError(f"another process has been building {target} for {wait:g} s: end it, or wait") from None
    try:
        yield
    finally:
        lock.release()
