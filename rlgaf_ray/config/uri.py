"""Run folders named by URI: taken apart, put together, and shown without the keys that they may carry."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from rlgaf_ray.config.hidden import public

# What may stand behind the question mark: none of it is secret.
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
    """Whether this is the URI of a place that is not in the file system."""
    return is_uri(text) and urlsplit(text).scheme != "file"


def local_path(text: str) -> Path:
    """The absolute path that a plain path or a ``file://`` URI means."""
    return Path(os.path.abspath(unquote(urlsplit(text).path) if is_uri(text) else os.path.expanduser(text)))


def unquoted(text: str) -> str:
    """What the characters of a URI stand for; a plain path is what it says."""
    return unquote(text) if is_uri(text) else text


def options(uri: str) -> dict[str, str]:
    """The query parameters of a URI."""
    pairs = (pair.partition("=") for pair in urlsplit(uri).query.split("&") if pair)
    return {name: unquote(value) for name, _, value in pairs}


def child(uri: str, *names: str) -> str:
    """The URI of what lies below: ``s3://bucket/runs?region=x`` and ``a`` give ``s3://bucket/runs/a?region=x``."""
    parts = urlsplit(uri)
    return parts._replace(path="/".join([parts.path.rstrip("/"), *names])).geturl()


def parent(uri: str) -> tuple[str, str]:
    """The URI of the folder above, and the last name. Raises ``ValueError`` for a bucket itself."""
    parts = urlsplit(uri)
    above, _, name = parts.path.rstrip("/").rpartition("/")
    if not name:
        raise ValueError(f"{public(uri)} names no run: give it as {parts.scheme}://BUCKET/PREFIX/NAME")
    return parts._replace(path=above).geturl(), name


def check(uri: str) -> None:
    """Raise ``ValueError`` for a URI that cannot name a run's root, whatever the network says."""
    parts = _split(uri)
    if parts.scheme not in OPTIONS:
        raise ValueError(f"{public(uri)} has an unknown scheme: give s3://, gs://, file:/// or a plain path")
    for name in options(uri):  # never its value: it may be a key
        if name not in OPTIONS[parts.scheme]:
            allowed = ", ".join(OPTIONS[parts.scheme]) or "none"
            raise ValueError(
                f"a {parts.scheme}:// root takes no option {name!r} (allowed: {allowed}); keys belong into the "
                "environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
    if any(segment in (".", "..") for segment in unquote(parts.path).split("/")):
        raise ValueError(f"{public(uri)} leads elsewhere by '.' or '..' in it: write the path that is meant")
    if parts.scheme == "file":
        if parts.netloc or not parts.path.startswith("/"):
            raise ValueError(f"{public(uri)} must be an absolute path on this machine: file:///PATH")
        return
    user, at, bucket = parts.netloc.rpartition("@")
    if not bucket:
        raise ValueError(f"{public(uri)} names no bucket: give it as {parts.scheme}://BUCKET/PREFIX")
    if not BUCKET.fullmatch(bucket):  # not shown: an unquoted slash in a key leaves a part of the key here
        raise ValueError(
            f"a {parts.scheme}:// root names no bucket that can be (lower-case letters, digits, dots and dashes); "
            "a key in front of it must be percent-encoded, '/' as %2F"
        )
    if parts.scheme == "s3" and at and not all(user.partition(":")):
        raise ValueError(f"{public(uri)} has half a key: give s3://KEY:SECRET@BUCKET/PREFIX, or leave both out")
    if parts.scheme == "gs" and at and user != "anonymous":
        raise ValueError(f"{public(uri)}: gs:// takes no key but 'anonymous@'; set GOOGLE_APPLICATION_CREDENTIALS")


def _split(uri: str) -> SplitResult:
    try:
        return urlsplit(uri)
    except ValueError as error:
        raise ValueError(f"{public(uri)} is no URI ({error})") from None
