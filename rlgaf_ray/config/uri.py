"""URIs of run folders: parsing, joining, validation, and display without keys."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from rlgaf_ray.config.hidden import public

# Allowed query parameters, none of them secret.
OPTIONS = {
    "s3": ("endpoint_override", "scheme", "region", "allow_bucket_creation", "force_virtual_addressing"),
    "gs": ("endpoint_override", "scheme", "project_id"),
    "file": (),
}
BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,221}")


def is_uri(text: str) -> bool:
    """Whether the text starts with a URI scheme, such as ``s3://``."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def is_remote(text: str) -> bool:
    """Whether the text is a URI of an object store."""
    return is_uri(text) and urlsplit(text).scheme != "file"


def local_path(text: str) -> Path:
    """Absolute path of a plain path or a ``file://`` URI."""
    return Path(os.path.abspath(unquote(urlsplit(text).path) if is_uri(text) else os.path.expanduser(text)))


def unquoted(text: str) -> str:
    """Decode the percent-encoding of a URI; a plain path is returned unchanged."""
    return unquote(text) if is_uri(text) else text


def options(uri: str) -> dict[str, str]:
    """The query parameters of a URI."""
    pairs = (pair.partition("=") for pair in urlsplit(uri).query.split("&") if pair)
    return {name: unquote(value) for name, _, value in pairs}


def child(uri: str, *names: str) -> str:
    """Append path segments: ``s3://bucket/runs?region=x`` and ``a`` give ``s3://bucket/runs/a?region=x``."""
    parts = urlsplit(uri)
    return parts._replace(path="/".join([parts.path.rstrip("/"), *names])).geturl()


def parent(uri: str) -> tuple[str, str]:
    """Split into the URI of the parent folder and the last name. Raises ``ValueError`` for a bucket."""
    parts = urlsplit(uri)
    above, _, name = parts.path.rstrip("/").rpartition("/")
    if not name:
        raise ValueError(f"{public(uri)} does not name a run: use {parts.scheme}://BUCKET/PREFIX/NAME")
    return parts._replace(path=above).geturl(), name


def check(uri: str) -> None:
    """Raise ``ValueError`` for a URI that cannot be ``run.root``; does not access the network."""
    parts = _split(uri)
    if parts.scheme not in OPTIONS:
        raise ValueError(f"{public(uri)} has an unknown scheme: use s3://, gs://, file:/// or a plain path")
    for name in options(uri):  # the value may be a key and is never shown
        if name not in OPTIONS[parts.scheme]:
            allowed = ", ".join(OPTIONS[parts.scheme]) or "none"
            raise ValueError(
                f"{parts.scheme}:// has no option {name!r} (allowed: {allowed}); put keys into the environment, such "
                "as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
    if any(segment in (".", "..") for segment in unquote(parts.path).split("/")):
        raise ValueError(f"{public(uri)} contains '.' or '..': write the resolved path")
    if parts.scheme == "file":
        if parts.netloc or not parts.path.startswith("/"):
            raise ValueError(f"{public(uri)} must be an absolute path on this machine: file:///PATH")
        return
    user, at, bucket = parts.netloc.rpartition("@")
    if not bucket:
        raise ValueError(f"{public(uri)} has no bucket: use {parts.scheme}://BUCKET/PREFIX")
    if not BUCKET.fullmatch(bucket):  # not shown, since an unquoted slash puts a part of the key here
        raise ValueError(
            f"the {parts.scheme}:// URI has an invalid bucket name: use lower-case letters, digits, dots and dashes, "
            "and percent-encode a key before it ('/' as %2F)"
        )
    if parts.scheme == "s3" and at and not all(user.partition(":")):
        raise ValueError(f"{public(uri)} has an incomplete key: use s3://KEY:SECRET@BUCKET/PREFIX, or remove it")
    if parts.scheme == "gs" and at and user != "anonymous":
        raise ValueError(f"{public(uri)}: gs:// accepts no key but 'anonymous@': set GOOGLE_APPLICATION_CREDENTIALS")


def _split(uri: str) -> SplitResult:
    try:
        return urlsplit(uri)
    except ValueError as error:
        raise ValueError(f"{public(uri)} is not a URI ({error})") from None
