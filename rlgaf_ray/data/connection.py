"""Connect to a bucket: build the ``pyarrow.fs`` file system for its URI."""

from __future__ import annotations

import functools
import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from rlgaf_ray.config import uri as uris

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

SILENT_SECONDS = 30.0  # read timeout: a store may need time to assemble a large object
CONNECT_SECONDS = 10.0
GCS_SECONDS = 2.0  # for the client's own retries: ``Remote`` has its own retry loop


@functools.lru_cache
def connect(scheme: str, netloc: str, query: str) -> FileSystem:
    """Return the cached file system of an address. It accesses the network only to look up an AWS bucket's region."""
    from pyarrow import fs

    options = uris.options(f"{scheme}://{netloc}?{query}")
    user, _, bucket = netloc.rpartition("@")
    match scheme:
        case "file":
            return fs.LocalFileSystem()
        case "gs":
            return fs.GcsFileSystem(
                anonymous=user == "anonymous", retry_time_limit=timedelta(seconds=GCS_SECONDS), **options
            )
    assert scheme == "s3", scheme
    settings: dict[str, Any] = dict(options)
    for name in ("allow_bucket_creation", "force_virtual_addressing"):
        settings[name] = options.get(name) == "true"
    if user:
        key, _, secret = user.partition(":")
        settings |= {"access_key": unquote(key), "secret_key": unquote(secret)}
    named = (os.environ.get(name) for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"))  # as Arrow itself does
    endpoint = options.get("endpoint_override") or next(filter(None, named), None)
    if not endpoint and "region" not in options:
        settings["region"] = fs.resolve_s3_region(bucket)
    return fs.S3FileSystem(
        request_timeout=SILENT_SECONDS,
        connect_timeout=CONNECT_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),  # ``Remote`` retries
        proxy_options=proxy_for(options.get("scheme", "https"), endpoint or "s3.amazonaws.com"),
        **settings,
    )


def proxy_for(scheme: str, endpoint: str) -> str | None:
    """Return the environment's proxy for this endpoint, which Arrow's S3 client ignores; None to connect directly."""
    host = urlsplit(f"//{endpoint.rpartition('//')[2]}").hostname or ""
    loopback = host in ("localhost", "::1") or host.startswith("127.")
    return None if loopback or proxy_bypass(host) else getproxies().get(scheme)
