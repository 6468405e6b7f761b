"""Files that are found by a hash of what they were made from, and are never half written."""

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

LONGEST_WAIT = 24 * 3600.0  # seconds; a process that dies gives its lock back at once


def content_hash(parts: Iterable[str]) -> str:
    """SHA-256, in hex, of the parts and of where each one ends."""
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it: readers see all of it or nothing.

    Raises ``StorageError`` where it cannot be written.
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
    """Only one process at a time is in the block for ``target``, a folder that takes long to make.

    Raises ``UserError`` after ``wait`` seconds.
    """
    lock = FileLock(target.with_name(target.name + ".lock"))
    with writing(target), suppress(Timeout):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    if not lock.is_locked:
        print(f"another process is making {target}: waiting for it", flush=True)
        try:
            lock.acquire(timeout=wait)
        except Timeout:
            raise UserError(f"another process has been making {target} for {wait:g} s: end it, or wait") from None
    try:
        yield
    finally:
        lock.release()
