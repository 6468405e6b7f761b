"""Files and folders in an object store: a subset of ``pathlib`` over ``pyarrow.fs``, with retries."""

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
PARALLEL = 8  # concurrent transfers
CHECK_SECONDS = 20.0  # to retry transient errors of the first access
MAX_COPY_BYTES = 5 * 1000**3  # S3's limit for a server-side copy in one request
TRANSIENT = ("NETWORK_CONNECTION", "SLOW_DOWN", "SERVICE_UNAVAILABLE", "UNAVAILABLE", "HTTP status 50")
CHUNK = 2**23  # bytes per read
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 10.0  # between retries, in seconds


class StorageError(UserError):
    """An operation that still failed after the retry timeout. The message names the place and the reason."""


class StorageRefused(UsageError):
    """A storage URI that cannot be used, detected before the run starts."""


@dataclass(frozen=True, order=True, repr=False)
class Remote:
    """A remote folder or file, by URI. Picklable: each process connects on first use.

    Every method retries for ``timeout`` seconds, then raises ``StorageError``. ``str`` and ``repr`` omit credentials.
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
        """The path in ``pyarrow.fs``: bucket, then key."""
        parts = urlsplit(self.uri)
        return parts.netloc.rpartition("@")[2] + unquote(parts.path)

    @property
    def filesystem(self) -> FileSystem:
        parts = urlsplit(self.uri)
        return connect(parts.scheme, parts.netloc, parts.query)

    def is_file(self) -> bool:
        return self._try("looked up", lambda: self.filesystem.get_file_info(self.path)).is_file

    def files(self) -> dict[str, int]:
        """Return the relative names of all files below, and their sizes in bytes.

        Raises ``StorageError`` for a name with ``..``, which a download would write outside its folder.
        """
        found = [info for info in self._list(recursive=True) if info.is_file]
        sizes = {info.path.removeprefix(self.path + "/"): info.size for info in found}
        for name in sizes:
            if ".." in name.split("/"):
                raise StorageError(f"{self} contains {name!r}, a path outside of it: remove that object")
        return sizes

    def children(self) -> list[Remote]:
        """Return the direct children, sorted by name."""
        return sorted(self / info.base_name for info in self._list(recursive=False))

    def _list(self, *, recursive: bool) -> list[FileInfo]:
        from pyarrow.fs import FileSelector

        selector = FileSelector(self.path, recursive=recursive, allow_not_found=True)

        def look() -> list[FileInfo]:
            try:
                return self.filesystem.get_file_info(selector)
            except FileNotFoundError as error:  # despite allow_not_found, if the folder changes during the listing
                raise OSError(str(error)) from error

        return self._try("listed", look)

    def read_bytes(self) -> bytes:
        """Read the file. Raises ``FileNotFoundError`` if it does not exist."""
        return self._try("read", lambda: self._stream().read())

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def sha256(self) -> str:
        """Return the hex SHA-256 of the file, read in chunks."""

        def read() -> str:
            with self._stream() as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()

        return self._try("read", read)

    def _stream(self) -> Any:
        return self.filesystem.open_input_stream(self.path)

    def write_bytes(self, content: bytes) -> None:
        """Write the file atomically: an object store shows an object only once it is complete."""
        self._try("written", lambda: self._fill(io.BytesIO(content)))

    def write_text(self, content: str, encoding: str = "utf-8") -> None:
        self.write_bytes(content.encode(encoding))

    def upload(self, file: Path) -> None:
        def send() -> None:
            with file.open("rb") as reader:
                self._fill(reader)

        self._try("written", send)

    def upload_folder(self, folder: Path, *, without: str | None = None) -> None:
        """Upload all files of a local folder, except the file with the relative path ``without``."""
        names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
        _each([name for name in names if name != without], lambda name: (self / name).upload(folder / name))

    def download(self, folder: Path, *, recursive: bool = True) -> None:
        """Download all files below to a local folder; with ``recursive=False`` only the direct children."""

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
        """Copy all files below within the storage, except those whose base name matches a pattern of ``without``."""

        def copy(name: str) -> None:
            source, copied = self / name, target / name

            def server_side() -> None:
                copied._make_parent()
                self.filesystem.copy_file(source.path, copied.path)

            def streamed() -> None:
                with source._stream() as reader:
                    copied._fill(reader)

            copied._try("written", server_side if sizes[name] < MAX_COPY_BYTES else streamed)

        sizes = self.files()
        _each([name for name in sizes if not any(fnmatch(Path(name).name, pattern) for pattern in without)], copy)

    def remove(self) -> None:
        """Delete the file or folder, if it exists."""

        def delete() -> None:
            info = self.filesystem.get_file_info(self.path)
            if info.is_file:
                self.filesystem.delete_file(self.path)
            elif self._list(recursive=True):
                self.filesystem.delete_dir(self.path)

        self._try("removed", delete)

    def check(self) -> None:
        """Raise ``StorageRefused`` unless files can be listed, written, read and removed here, with a probe file."""
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
                transient = any(word in str(cause) for word in TRANSIENT)
                if not transient or time.monotonic() > deadline:
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
        """Write a stream and verify the stored size, because ``pyarrow.fs.copy_files`` can lose a file silently."""
        self._make_parent()
        with self.filesystem.open_output_stream(self.path) as writer:
            shutil.copyfileobj(reader, writer, CHUNK)
        stored, size = self.filesystem.get_file_info(self.path).size, reader.tell()
        if stored != size:
            raise OSError(f"{stored or 0} of {size} bytes were stored")

    def _make_parent(self) -> None:
        """Create the parent folder on a file system that is no object store, such as ``file://``."""
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
    """Process names in parallel; the first failure is raised once the running ones have ended."""
    with ThreadPoolExecutor(PARALLEL, thread_name_prefix="storage") as pool:
        for _ in pool.map(work, names):
            pass


def _reason(error: BaseException | None) -> str:
    text = " ".join(uris.public(str(error)).split())
    return text if len(text) <= 300 else text[:297] + "..."
