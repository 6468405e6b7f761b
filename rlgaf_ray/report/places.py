"""Open local or remote run folders for a report or an evaluation, and upload its output."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rlgaf_ray.config import uri
from rlgaf_ray.data.mirror import Mirror
from rlgaf_ray.data.remote import Remote, StorageRefused
from rlgaf_ray.data.storage import Place


@dataclass(frozen=True, slots=True)
class Opened:
    """Local copies of the run folders, and the folder to write into, which is uploaded if it is remote."""

    folders: list[Path]
    places: list[Place]  # the original folders
    target: Path
    remote: Remote | None  # the destination of the target

    def shown(self, path: Path) -> str:
        """Return the path or URI where a file of the target ends up."""
        return str(path if self.remote is None else self.remote / path.relative_to(self.target).as_posix())


@contextmanager
def opened(folders: Sequence[str], out: str | None, *, subfolders: Sequence[str] = ()) -> Iterator[Opened]:
    """Open runs by path or URI; a remote one is downloaded, with these subfolders, for the duration of the block.

    ``out`` is a path or URI, by default the first run's folder. Raises ``StorageRefused`` or ``StorageError``.
    """
    for place in [*folders, *([] if out is None else [out])]:
        if uri.is_uri(place):
            try:
                uri.check(place)
            except ValueError as error:
                raise StorageRefused(str(error)) from None
    with tempfile.TemporaryDirectory(prefix="rlgaf-") as temporary:
        local = [_fetch(folder, Path(temporary) / str(n), subfolders) for n, folder in enumerate(folders)]
        place = folders[0] if out is None else out
        kept: list[Place] = [Remote(each) if uri.is_remote(each) else _here(each) for each in folders]
        if not uri.is_remote(place):
            target = local[0] if out is None else _here(place)
            yield Opened(local, kept, target, None)
            return
        target = local[0] if out is None else Path(temporary) / "out"
        target.mkdir(exist_ok=True)
        remote = Remote(place)
        mirror = Mirror(target, remote)
        mirror.keep_what_is_there()
        yield Opened(local, kept, target, remote)
        mirror.flush()


def _fetch(folder: str, into: Path, subfolders: Sequence[str]) -> Path:
    if not uri.is_remote(folder):
        return _here(folder)
    remote = Remote(folder)
    remote.check_readable()
    local = into / remote.name
    local.mkdir(parents=True)
    remote.download(local, recursive=False)
    for name in subfolders:
        (remote / name).download(local / name)
    return local


def _here(place: str) -> Path:
    return uri.local_path(place) if uri.is_uri(place) else Path(os.path.expanduser(place))
