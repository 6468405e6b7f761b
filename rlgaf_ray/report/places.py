"""Runs that a report or an evaluation reads from wherever they are kept, and where it writes what it makes of them."""

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
    """Local folders of the runs, and the one to write into; what is written there goes on to the storage it is of."""

    folders: list[Path]
    places: list[Place]  # where they are kept
    target: Path
    remote: Remote | None  # what the target stands for

    def shown(self, path: Path) -> str:
        return str(path if self.remote is None else self.remote / path.relative_to(self.target).as_posix())


@contextmanager
def opened(folders: Sequence[str], out: str | None, *, subfolders: Sequence[str] = ()) -> Iterator[Opened]:
    """Runs by path or by URI; a remote one is here for the length of the block, with these of its subfolders.

    ``out``: a path or a URI; by default the first run's folder. Raises ``StorageRefused`` or ``StorageError``.
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
