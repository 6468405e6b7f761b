"""Files and folders in an object store: the part of ``pathlib`` that runs need, over ``pyarrow.fs``, with retries."""

from __future__ import annotations

import hashlib
import io
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

from rlgaf_ray.config import uri as uris
from rlgaf_ray.data.connection import connect
from rlgaf_ray.errors import UsageError, UserError

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

T = TypeVar("T")
PARALLEL = 8  # files on their way at once
CHECK_SECONDS = 20.0  # for the first answer of a storage
COPIED_WHOLE = 5 * 1000**3  # S3 copies no larger object by itself
PASSING = ("NETWORK_CONNECTION", "SLOW_DOWN", "SERVICE_UNAVAILABLE", "UNAVAILABLE", "HTTP status 50")  # try again
CHUNK = 2**23  # bytes that are held at once
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 10.0  # between tries, in seconds


class StorageError(UserError):
    """A storage that did not do what it was asked to within the time: one sentence that names place and reason."""


class StorageRefused(UsageError):
    """A URI that no run can be kept at, found before anything was started."""


@dataclass(frozen=True, order=True, repr=False)
class Remote:
    """A folder or a file, by URI. What it stands for is reached when it is asked for, from whichever process asks.

    Every method tries again for ``timeout`` seconds, then raises ``StorageError``. Shown without its keys.
    """

    uri: str
    timeout: float = field(default=120.0, compare=False)

    def __str__(self) -> str:
        return uris.public(self.uri)

    __repr__ = __str__

    def __truediv__(self, name: str) -> Remote:
        return replace(self, uri=uris.child(self.uri, name))

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def path(self) -> str:
        """As ``pyarrow.fs`` wants it: the bucket, then the key."""
        parts = urlsplit(self.uri)
        return parts.netloc.rpartition("@")[2] + unquote(parts.path)

    @property
    def filesystem(self) -> FileSystem:
        parts = urlsplit(self.uri)
        return connect(parts.scheme, parts.netloc, parts.query)

    def is_file(self) -> bool:
        return self._try("looked up", lambda: self.filesystem.get_file_info(self.path)).is_file

    def files(self) -> dict[str, int]:
        """Names of all files below, relative to here, and their sizes in bytes.

        Raises ``StorageError`` for a name that would lead out of a folder that it is copied to.
        """
        found = [info for info in self._list(recursive=True) if info.is_file]
        sizes = {info.path.removeprefix(self.path + "/"): info.size for info in found}
        for name in sizes:
            if ".." in name.split("/"):
                raise StorageError(f"{self} holds {name!r}, which leads out of it: remove that object")
        return sizes

    def children(self) -> list[Remote]:
        """The folders and files right below, by name."""
        return sorted(self / info.base_name for info in self._list(recursive=False))

    def _list(self, *, recursive: bool) -> list[FileInfo]:
        from pyarrow.fs import FileSelector

        selector = FileSelector(self.path, recursive=recursive, allow_not_found=True)

        def look() -> list[FileInfo]:
            try:
                return self.filesystem.get_file_info(selector)
            except FileNotFoundError as error:  # despite allow_not_found: a folder came or went while it was listed
                raise OSError(str(error)) from error

        return self._try("listed", look)

    def read_bytes(self) -> bytes:
        """Raises ``FileNotFoundError`` where there is no such file."""
        return self._try("read", lambda: self._stream().read())

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def sha256(self) -> str:
        """In hex, of a file that may be too large to be held."""

        def read() -> str:
            with self._stream() as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()

        return self._try("read", read)

    def _stream(self) -> Any:
        return self.filesystem.open_input_stream(self.path)

    def write_bytes(self, content: bytes) -> None:
        """All of it or, where this fails, what was there before: an object appears when it is complete."""
        self._try("written", lambda: self._fill(io.BytesIO(content)))

    def write_text(self, content: str, encoding: str = "utf-8") -> None:
        self.write_bytes(content.encode(encoding))

    def upload(self, file: Path) -> None:
        def send() -> None:
            with file.open("rb") as reader:
                self._fill(reader)

        self._try("written", send)

    def upload_folder(self, folder: Path, *, without: str | None = None) -> None:
        """``without``: a file that does not go along."""
        names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
        _each([name for name in names if name != without], lambda name: (self / name).upload(folder / name))

    def download(self, folder: Path, *, recursive: bool = True) -> None:
        """Fill a folder of this machine with the files below here, or only with those right below."""

        def fetch(name: str) -> None:
            def receive() -> None:
                with source._stream() as reader, target.open("wb") as writer:
                    shutil.copyfileobj(reader, writer, CHUNK)

            target, source = folder / name, self / name
            target.parent.mkdir(parents=True, exist_ok=True)
            source._try("read", receive)

        names = self.files() if recursive else [info.base_name for info in self._list(recursive=False) if info.is_file]
        _each(names, fetch)

    def copy_to(self, target: Remote, *, without: Sequence[str] = ()) -> None:
        """Copy the files below within the storage, but for those whose last name fits a pattern."""

        def copy(name: str) -> None:
            source, copied = self / name, target / name

            def within() -> None:
                copied._make_parent()
                self.filesystem.copy_file(source.path, copied.path)

            def through_here() -> None:
                with source._stream() as reader:
                    copied._fill(reader)

            copied._try("written", within if sizes[name] < COPIED_WHOLE else through_here)

        sizes = self.files()
        _each([name for name in sizes if not any(fnmatch(Path(name).name, pattern) for pattern in without)], copy)

    def remove(self) -> None:
        """The file, or all that lies below; nothing where there is nothing."""

        def delete() -> None:
            info = self.filesystem.get_file_info(self.path)
            if info.is_file:
                self.filesystem.delete_file(self.path)
            elif self._list(recursive=True):
                self.filesystem.delete_dir(self.path)

        self._try("removed", delete)

    def check(self) -> None:
        """Raise ``StorageRefused`` unless files can be listed, written, read and removed here; leaves nothing."""
        probe = replace(self, timeout=0.0) / f".rlgaf-{uuid.uuid4().hex}"

        def try_all() -> None:
            probe._list(recursive=False)
            probe.write_text("can files be written here?", encoding="utf-8")
            probe.read_text(encoding="utf-8")
            probe.remove()

        self._refuse_unless(try_all)

    def check_readable(self) -> None:
        """Raise ``StorageRefused`` unless files can be listed here."""
        self._refuse_unless(lambda: replace(self, timeout=0.0)._list(recursive=False))

    def _refuse_unless(self, works: Callable[[], object]) -> None:
        deadline = time.monotonic() + min(CHECK_SECONDS, self.timeout)
        while True:
            try:
                self._check_bucket()
                works()
                return
            except (OSError, StorageError) as error:
                cause = error.__cause__ if isinstance(error, StorageError) else error
                passing = any(word in str(cause) for word in PASSING)
                if not passing or time.monotonic() > deadline:
                    raise StorageRefused(f"{self} cannot be used: {_reason(cause)}") from error
            time.sleep(FIRST_PAUSE)

    def _check_bucket(self) -> None:
        from pyarrow.fs import FileType

        bucket = self.path.partition("/")[0]
        if not bucket or self.filesystem.get_file_info(bucket).type != FileType.NotFound:
            return
        if uris.options(self.uri).get("allow_bucket_creation") != "true":
            raise StorageRefused(
                f"{self}: bucket {bucket} does not exist; create it, or add allow_bucket_creation=true behind the '?'"
            )
        self.filesystem.create_dir(bucket)

    def _fill(self, reader: Any) -> None:
        """Write what the reader gives, and see that it is there: ``pyarrow.fs.copy_files`` has lost one in silence."""
        self._make_parent()
        with self.filesystem.open_output_stream(self.path) as writer:
            shutil.copyfileobj(reader, writer, CHUNK)
        stored, size = self.filesystem.get_file_info(self.path).size, reader.tell()
        if stored != size:
            raise OSError(f"{stored or 0} of {size} bytes have arrived")

    def _make_parent(self) -> None:
        """Object stores have no folders; a file system that stands in for one does."""
        if self.filesystem.type_name not in ("s3", "gcs"):
            self.filesystem.create_dir(self.path.rpartition("/")[0])

    def _try(self, done: str, operation: Callable[[], T]) -> T:
        deadline, pause = time.monotonic() + self.timeout, FIRST_PAUSE
        while True:
            try:
                return operation()
            except FileNotFoundError:
                raise
            except OSError as error:
                if time.monotonic() + pause > deadline:
                    text = f"{self} could not be {done} within {self.timeout:g} s: {_reason(error)}"
                    raise StorageError(text) from error
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


def _each(names: Sequence[str] | dict[str, int], work: Callable[[str], None]) -> None:
    """Some at a time; the first failure comes out once those under way have ended."""
    with ThreadPoolExecutor(PARALLEL, thread_name_prefix="storage") as pool:
        for _ in pool.map(work, names):
            pass


def _reason(error: BaseException | None) -> str:
    text = " ".join(uris.public(str(error)).split())
    return text if len(text) <= 300 else text[:297] + "..."
