"""Places that runs write to, in the file system or in an object store, with errors that name the place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rlgaf_ray.data.remote import Remote, StorageError
from rlgaf_ray.errors import UserError

Place = Path | Remote


def remove(place: Place) -> None:
    """A file or a whole folder, if it is there."""
    if isinstance(place, Remote):
        place.remove()
    elif place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def copy_tree(source: Place, target: Place, *, without: Sequence[str] = ()) -> None:
    """Copy a folder's files, over those that are there, but for the names that fit a pattern."""
    match source, target:
        case Path(), Path():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns(*without), dirs_exist_ok=True)
        case Remote(), Remote():
            source.copy_to(target, without=without)
        case _:
            raise AssertionError(f"{source} and {target} lie in different storages")


@contextmanager
def writing(place: Place) -> Iterator[None]:
    """Raises ``StorageError``, which names the place, for what a file system refuses here: a full disk, say."""
    try:
        yield
    except StorageError:  # of a part of it, which is named
        raise
    except Exception as error:
        if not isinstance(error, OSError) and "(os error " not in str(error):  # libraries in Rust raise what they like
            raise
        where = getattr(error, "filename", None) or place
        raise StorageError(f"{where} could not be written: {getattr(error, 'strerror', None) or error}") from error


def replace_text(path: Path, text: str) -> None:
    """A kill or a full disk leaves all of the new text or all of the old one."""
    beside = path.with_name(path.name + ".partial")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def expanded(path: str | Path, what: str) -> Path:
    """With the user's home for ``~``. Raises ``UserError``, which names ``what``, where there is no such home."""
    found = Path(os.path.expanduser(path))
    if found.parts[:1] and found.parts[0].startswith("~"):
        raise UserError(f"{what}={path} is in a home folder that this machine does not know: give an absolute path")
    return found
