"""Writes requirements.lock: each package of the default install, its version and the SHA-256 of its wheels.

    make lock

uv resolves pyproject.toml under constraints.txt; nothing is installed. Only versions and hashes are kept: where the
wheels come from is pip's or uv's own configuration. Of each package the lock has every wheel that fits the Python and
the system that this runs on, CPython 3.11 on Linux x86-64: pip and uv do not always choose the same one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from install import find_uv, pip_settings, uv_environment
from packaging.tags import sys_tags
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).parents[1]
EXTRAS = ("cpu", "dev")
HEADER = """\
# The default install with hashes: CPython 3.11, Linux x86-64, extras cpu and dev. Made by `make lock`, used by
# `make locked`; docs/dependencies.md tells more. Complete, so that nothing needs to be resolved (--no-deps).
"""


def main() -> None:
    if sys.version_info[:2] != (3, 11):
        sys.exit("the lock is for Python 3.11: make PYTHON=python3.11 lock")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    uv = find_uv(Path(sys.prefix), pip, may_install=True)
    if uv is None:
        sys.exit("the lock is made with uv: pip install uv")
    command = [uv, "pip", "compile", "--quiet", "--python", sys.executable, "--format", "pylock.toml"]
    command += ["pyproject.toml", "-c", "constraints.txt", *(word for extra in EXTRAS for word in ("--extra", extra))]
    environment = uv_environment(dict(os.environ), pip_settings(pip), cpu=True)
    written = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True).stdout
    packages = tomllib.loads(written.decode())["packages"]
    lines = sorted((locked(package) for package in packages), key=str.lower)
    (ROOT / "requirements.lock").write_text(HEADER + "\n".join(lines) + "\n")
    print(f"requirements.lock: {len(lines)} packages")


def locked(package: dict[str, Any]) -> str:
    """One line: a package's version and the hashes of what can be installed here, of its source where there is none."""
    here = set(sys_tags())
    wheels = package.get("wheels", [])
    files = [wheel for wheel in wheels if parse_wheel_filename(file_name(wheel))[3] & here]
    files = files or [package.get("sdist") or package["archive"]]
    hashes = sorted({file["hashes"]["sha256"] for file in files})
    return " ".join([f"{package['name']}=={package['version']}", *(f"--hash=sha256:{digest}" for digest in hashes)])


def file_name(wheel: dict[str, Any]) -> str:
    return wheel.get("name") or (wheel.get("url") or wheel["path"]).split("/")[-1].replace("%2B", "+")


if __name__ == "__main__":
    main()
