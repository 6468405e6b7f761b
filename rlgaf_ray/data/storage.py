"""Operations on places, which are local paths or remote URIs, with errors that name the place."""

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
    """Delete a file or folder, if it exists."""
    if isinstance(place, Remote):
        place.remove()
    elif place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def copy_tree(source: Place, target: Place, *, without: Sequence[str] = ()) -> None:
    """Copy a folder within one storage, overwriting files; skip base names that match a pattern of ``without``."""
    match source, target:
        case Path(), Path():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns(*without), dirs_exist_ok=True)
        case Remote(), Remote():
            source.copy_to(target, without=without)
        case _:
            raise AssertionError(f"{source} and {target} lie in different storages")


@contextmanager
def writing(place: Place) -> Iterator[None]:
    """Turn write errors of the file system, such as a full disk, into a ``StorageError`` that names the place."""
    try:
        yield
    except StorageError:  # already names the place
        raise
    except Exception as error:
        if not isinstance(error, OSError) and "(os error " not in str(error):  # Rust libraries raise their own types
            raise
        where = getattr(error, "filename", None) or place
        raise StorageError(f"{where} could not be written: {getattr(error, 'strerror', None) or error}") from error


def replace_text(path: Path, text: str) -> None:
    """Replace a file's text atomically: after a crash or a full disk it has either the old or the new text."""
    beside = path.with_name(path.name + ".partial")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def expanded(path: str | Path, what: str) -> Path:
    """Expand ``~``. Raises ``UserError`` naming ``what`` if the home folder is unknown."""
    found = Path(os.path.expanduser(path))
    if found.parts[:1] and found.parts[0].startswith("~"):
        raise UserError(f"{what}={path} is in an unknown home folder: give an absolute path")
    return found
