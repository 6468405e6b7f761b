"""Fix environment variables that keep Ray from starting, for this process and its children."""

from __future__ import annotations

import getpass
import os
import secrets
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from ray._private import ray_constants

from rlgaf_ray.errors import UserError

SOCKET_BYTES = 103 if sys.platform == "darwin" else 107  # maximum length of a Unix socket's path
RAY_SOCKET = len("/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store.1")
LOOPBACK = ("localhost", "127.0.0.1", "::1")
PROXIES = ("http_proxy", "https_proxy", "all_proxy")
NO_PROXY = ("no_proxy", "NO_PROXY")
TEMPORARY = ("/tmp", f"/tmp/rlgaf-{os.getuid()}")
UV_HOOK = "RAY_ENABLE_UV_RUN_RUNTIME_ENV"
DASHBOARD_LIMIT, DASHBOARD_SECONDS = "RAY_DASHBOARD_STARTUP_TIMEOUT_S", 600
TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
JOBS_API = ("http", "https")


def prepare_environment(address: str | None) -> None:
    """Prepare the environment for starting a local Ray, or for joining the cluster at ``address``.

    Raises ``UserError`` for an invalid address or temporary folder.
    """
    host = endpoint(address)[0] if address else None
    changes = without_proxy(os.environ, (*LOOPBACK, *([host] if host else [])))
    changes |= user_name()
    if address is None:
        changes |= short_temporary_folder(os.environ) | token(os.environ)
    if UV_HOOK not in os.environ:
        # Under `uv run` Ray would upload the working directory, with runs/ and cache/, although workers do not need it.
        ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = False
    if DASHBOARD_LIMIT not in os.environ:
        # A busy machine needs longer than Ray's minute; a dashboard that failed is seen at once, by its exit code.
        ray_constants.RAY_DASHBOARD_STARTUP_TIMEOUT_S = DASHBOARD_SECONDS
    os.environ.update(changes)


def named_address(configured: str | None) -> str | None:
    """Return the address of the cluster to join, or None for a local Ray; as in Ray, an empty value counts as none."""
    address = (configured or os.environ.get("RAY_ADDRESS") or "").strip()
    return None if address in ("", "local") else address


def endpoint(address: str) -> tuple[str | None, int | None]:
    """Return host and port of a cluster's address; None for one that Ray discovers. Raises ``UserError``."""
    scheme, separator, rest = address.rpartition("://")
    if scheme in JOBS_API:
        raise UserError(
            f"{address} is the address of Ray's Jobs API, which only accepts submitted jobs: run 'ray job submit "
            f"--address {address} -- python -m rlgaf_ray.main ...', or set cluster.address or RAY_ADDRESS to HOST:6379"
        )
    if address == "auto" or (separator and scheme != "ray"):
        return None, None
    try:
        parts = urlsplit(f"//{rest}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        raise UserError(
            f"{address} is not the address of a Ray cluster: set cluster.address or RAY_ADDRESS to HOST:PORT, "
            "[IPv6]:PORT, ray://HOST:PORT or auto, or unset both to run locally"
        )
    return host, port


def without_proxy(environment: Mapping[str, str], hosts: tuple[str, ...]) -> dict[str, str]:
    """If a proxy is set, return the no-proxy variables extended by ``hosts``; else nothing."""
    if not any(environment.get(name) or environment.get(name.upper()) for name in PROXIES):
        return {}
    given = [host.strip() for name in NO_PROXY for host in environment.get(name, "").split(",")]
    listed = ",".join(dict.fromkeys(host for host in (*given, *hosts) if host))
    return dict.fromkeys(NO_PROXY, listed)


def short_temporary_folder(environment: Mapping[str, str], others: Sequence[str] = TEMPORARY) -> dict[str, str]:
    """If ``TMPDIR`` (default ``/tmp``) cannot hold Ray's sockets, return a folder for Ray and vLLM that can.

    Raises ``UserError`` if ``RAY_TMPDIR`` is set to such a folder, or if no other folder works.
    """
    chosen = environment.get("RAY_TMPDIR")
    if _takes_sockets(chosen or environment.get("TMPDIR") or "/tmp"):
        return {}
    found = next(filter(_takes_sockets, others), None)
    if chosen or found is None:
        name = f"RAY_TMPDIR={chosen}" if chosen else f"TMPDIR={environment.get('TMPDIR') or '/tmp'}"
        raise UserError(
            f"{name} cannot hold Ray's sockets: set RAY_TMPDIR to an absolute path of at most "
            f"{SOCKET_BYTES - RAY_SOCKET} bytes where files can be written"
        )
    return {"RAY_TMPDIR": found} | ({} if "VLLM_RPC_BASE_PATH" in environment else {"VLLM_RPC_BASE_PATH": found})


def _takes_sockets(folder: str) -> bool:
    ray_folder = Path(folder) / "ray"  # created by Ray; it may belong to another user
    if not ray_folder.is_absolute() or len(os.fsencode(folder)) + RAY_SOCKET > SOCKET_BYTES:
        return False
    existing = next(each for each in (ray_folder, *ray_folder.parents) if each.exists())
    try:
        with tempfile.TemporaryDirectory(dir=existing):
            return True
    except OSError:
        return False


def token(environment: Mapping[str, str]) -> dict[str, str]:
    """Return a token for Ray if it could not write its own to the user's home."""
    if environment.get("RAY_AUTH_MODE", "token").lower() != "token" or any(environment.get(name) for name in TOKENS):
        return {}
    with suppress(OSError, RuntimeError):  # RuntimeError: a user without a home
        folder = Path.home() / ".ray"
        if (folder / "auth_token").is_file():
            return {}
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return {}
    return {"RAY_AUTH_TOKEN": secrets.token_hex(32)}


def user_name() -> dict[str, str]:
    """Return a user name for a user id without one, as in containers; torch and vLLM use it in folder names."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        return {"USER": f"user-{os.getuid()}"}
    return {}
