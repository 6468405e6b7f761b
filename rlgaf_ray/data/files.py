"""Read rows from a user's data files: local paths, globs and URIs. Each row carries its location for errors."""

from __future__ import annotations

import glob
import gzip
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rlgaf_ray.config import uri as uris
from rlgaf_ray.config.hidden import public
from rlgaf_ray.config.rows import Paths
from rlgaf_ray.data.formats import READERS, PlacedRow
from rlgaf_ray.data.remote import Remote
from rlgaf_ray.errors import UserError

TIMEOUT = 20.0  # seconds to retry a failing read of s3:// or gs://
OWN_SCHEMES = ("s3", "gs")  # read with pyarrow, with the same options as run.root; other schemes with fsspec


@dataclass(frozen=True, slots=True)
class DataFile:
    """A data file. ``name`` is its path or URI for errors, without credentials."""

    name: str
    read: Callable[[], bytes]

    def rows(self) -> Iterator[PlacedRow]:
        """Yield the rows by the file's suffix. Raises ``UserError`` naming the file, and the line or row if known."""
        path = urlsplit(self.name).path if uris.is_uri(self.name) else self.name
        stem = path[:-3] if path.lower().endswith(".gz") else path
        reader = READERS.get(os.path.splitext(stem)[1].lower())
        if reader is None:
            raise UserError(f"{self.name} has an unknown suffix: the formats are {', '.join(READERS)}, and .gz of each")
        content = self.read()
        if stem != path:
            try:
                content = gzip.decompress(content)
            except (OSError, EOFError, zlib.error) as error:
                raise UserError(f"{self.name} is not a valid gzip file ({error}): compress it again") from error
        yield from reader(self.name, content)


def read_rows(paths: Paths, key: str) -> list[PlacedRow]:
    """Read the rows of all files that ``paths`` match, in order; files of a glob are sorted by name.

    Raises ``UserError`` naming ``key`` or the file, also if there are no rows.
    """
    patterns = [paths] if isinstance(paths, str) else paths or []
    rows = [row for pattern in patterns for file in find_files(pattern, key) for row in file.rows()]
    if not rows:
        raise UserError(f"{key}={public(', '.join(patterns))} is empty: give a file with rows")
    return rows


def find_files(pattern: str, key: str) -> list[DataFile]:
    """Find the files of a path, glob or URI. Raises ``UserError`` naming ``key`` if there are none."""
    scheme = urlsplit(pattern).scheme if uris.is_uri(pattern) else "file"
    find = _local if scheme == "file" else _stored if scheme in OWN_SCHEMES else _through_fsspec
    try:
        files = find(pattern)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{key}={public(pattern)} cannot be read: {_one_line(error)}") from error
    if not files:
        missing = "matches no file" if _is_glob(pattern) else "does not exist"
        raise UserError(
            f"{key}={public(pattern)} {missing}: give a file with one row per line, or a glob of such files"
        )
    return files


def _local(pattern: str) -> list[DataFile]:
    shown = pattern
    if uris.is_uri(pattern):
        pattern = str(uris.local_path(pattern))
    path = Path(os.path.expanduser(pattern))
    if path.is_dir():
        raise IsADirectoryError(f"it is a folder; name its files, such as {shown.rstrip('/')}/*.jsonl")
    found = [path] if path.is_file() else map(Path, sorted({*glob.glob(str(path), recursive=True)}))
    return [DataFile(str(file), _reading(file.read_bytes, str(file))) for file in found if file.is_file()]


def _stored(pattern: str) -> list[DataFile]:
    """Find files in an object store. Wildcards are ``*``, ``**`` and ``[...]``; ``?`` begins the URI's options."""
    uris.check(pattern)
    segments = urlsplit(pattern).path.split("/")
    fixed = next((number for number, segment in enumerate(segments) if _is_glob(segment)), len(segments) - 1)
    folder = Remote(urlsplit(pattern)._replace(path="/".join(segments[:fixed])).geturl(), timeout=TIMEOUT)
    wanted = "/".join(segments[fixed:])
    if not _is_glob(pattern):
        names = [wanted] if (folder / wanted).is_file() else []
    else:
        names = [name for name in sorted(folder.files()) if _matches(name.split("/"), segments[fixed:])]
    return [DataFile(str(folder / name), (folder / name).read_bytes) for name in names]


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """Match the segments of a path like ``glob.glob(recursive=True)``: ``**`` is zero or more folders."""
    if not names or not patterns:
        return names == patterns or patterns == ["**"]
    visible = patterns[0].startswith(".") or not names[0].startswith(".")
    if patterns[0] == "**":
        return _matches(names, patterns[1:]) or (visible and _matches(names[1:], patterns))
    return visible and fnmatchcase(names[0], patterns[0]) and _matches(names[1:], patterns[1:])


def _through_fsspec(pattern: str) -> list[DataFile]:
    import fsspec

    def reading(file: Any) -> Callable[[], bytes]:
        def read() -> bytes:
            with file as stream:
                content: bytes = stream.read()
                return content

        return read

    try:
        files = fsspec.open_files(pattern, "rb")
    except Exception as error:  # fsspec's file systems raise the exceptions of their clients
        raise OSError(_one_line(error)) from error
    return [DataFile(public(file.full_name), _reading(reading(file), public(file.full_name))) for file in files]


def _reading(read: Callable[[], bytes], name: str) -> Callable[[], bytes]:
    def guarded() -> bytes:
        try:
            return read()
        except Exception as error:  # as above
            raise UserError(f"{name} cannot be read: {_one_line(error)}") from error

    return guarded


def _is_glob(text: str) -> bool:
    return any(character in text for character in "*[")


def _one_line(error: BaseException) -> str:
    error = error.__cause__ or error
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(public(text).split())[:300]
