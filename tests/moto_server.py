"""moto's S3 server in a process of its own, on loopback."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.patience import wait_until

KEY, SECRET = "AKEYOFTHISTEST", "a-secret-of-this-test"

needs_moto = pytest.mark.skipif(
    importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask_cors") is None,
    reason="moto's server is not installed",
)


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@contextmanager
def moto_server(log: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Its process, and the options of a URI that lead to it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        wait_until(lambda: answers(port), f"answer of the server, whose log is {log}", process=process)
        yield process, f"scheme=http&region=us-east-1&endpoint_override=127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()
