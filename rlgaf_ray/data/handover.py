"""Decorators for save and load methods: a remote folder is staged in a temporary folder of the node."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from rlgaf_ray.data.remote import Remote, StorageError
from rlgaf_ray.data.storage import Place, writing

S = TypeVar("S")
P = ParamSpec("P")
R = TypeVar("R")
CHECKSUMS = "checksums-"  # prefix, followed by a hash: several processes may write into one folder


def saves_to_storage(
    method: Callable[Concatenate[S, Path, P], None],
) -> Callable[Concatenate[S, Place, P], None]:
    """Let ``method``, which writes a local folder, save to remote folders: write a temporary folder, then upload it.

    Checksums are stored beside the files, since the process that completes the checkpoint does not have the files. If
    the upload fails, the temporary folder is kept and the ``StorageError`` names it. Local write errors, such as a full
    disk, raise ``StorageError`` too.
    """

    @functools.wraps(method)
    def save(self: S, folder: Place, *args: P.args, **kwargs: P.kwargs) -> None:
        if isinstance(folder, Path):
            with writing(folder):
                method(self, folder, *args, **kwargs)
            return
        local = Path(tempfile.mkdtemp(prefix="rlgaf-"))
        try:
            with writing(local):
                method(self, local, *args, **kwargs)
            send(local, folder)
        except StorageError as error:
            raise StorageError(f"{error}; the files are kept in {local} on {socket.gethostname()}") from error
        except BaseException:
            shutil.rmtree(local)
            raise
        shutil.rmtree(local)

    return save


def loads_from_storage(
    method: Callable[Concatenate[S, Path, P], R],
) -> Callable[Concatenate[S, Place, P], R]:
    """Let ``method``, which reads a local folder, load remote folders: download them to a temporary folder first."""

    @functools.wraps(method)
    def load(self: S, folder: Place, *args: P.args, **kwargs: P.kwargs) -> R:
        if isinstance(folder, Path):
            return method(self, folder, *args, **kwargs)
        with tempfile.TemporaryDirectory(prefix="rlgaf-") as local:
            folder.download(Path(local))
            return method(self, Path(local), *args, **kwargs)

    return load


def send(local: Path, folder: Remote) -> None:
    """Upload a folder's files, then their checksums. Does nothing for an empty folder: some ranks write no file."""
    sums = {file.relative_to(local).as_posix(): checksum(file) for file in local.rglob("*") if file.is_file()}
    if sums:
        folder.upload_folder(local)
        text = json.dumps(sums, indent=1, sort_keys=True)
        (folder / f"{CHECKSUMS}{hashlib.sha256(text.encode()).hexdigest()[:8]}.json").write_text(text, encoding="utf-8")


def checksums(folder: Place) -> dict[str, str]:
    """Return the SHA-256 of every file below ``folder`` by relative name.

    For a remote folder it uses the stored checksums, and reads only files that have none.
    """
    if isinstance(folder, Path):
        return {str(file.relative_to(folder)): checksum(file) for file in sorted(folder.rglob("*")) if file.is_file()}
    sums: dict[str, str] = {}
    names = set(folder.files())
    for name in [name for name in names if name.rpartition("/")[2].startswith(CHECKSUMS)]:
        prefix = name.removesuffix(name.rpartition("/")[2])
        listed = json.loads((folder / name).read_text(encoding="utf-8"))
        sums |= {prefix + file: digest for file, digest in listed.items()}
    return {name: sums.get(name) or checksum(folder / name) for name in sorted(names)}


def checksum(file: Place) -> str:
    if isinstance(file, Remote):
        return file.sha256()
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
