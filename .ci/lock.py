"""Writes requirements.lock: each package of the default install, its version and the SHA-256 of its wheel.

    make lock

pip resolves pyproject.toml under constraints.txt and reports what it would install; nothing is installed. Only versions
and hashes are kept: where the wheels come from is pip's own configuration. The lock is for the Python and the system
that this runs on, CPython 3.11 on Linux x86-64.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXTRAS = "cpu,dev"
# vLLM asks for them, text models need none, and builds for another torch break transformers (rlgaf_ray/doctor.py).
LEFT_OUT = {"rlgaf_ray", "torchaudio", "torchcodec", "torchvision"}
HEADER = """\
# The default install with hashes: CPython 3.11, Linux x86-64, extras cpu and dev. Made by `make lock`, used by
# `make locked`; docs/dependencies.md tells more. Complete, so that pip needs to resolve nothing (--no-deps).
"""


def main() -> None:
    if sys.version_info[:2] != (3, 11):
        sys.exit("the lock is for Python 3.11: make PYTHON=python3.11 lock")
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report=-"]
    command += ["-c", "constraints.txt", f".[{EXTRAS}]"]
    report = json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout)
    lines = []
    for item in report["install"]:
        name, version = item["metadata"]["name"], item["metadata"]["version"]
        if name not in LEFT_OUT:
            lines.append(f"{name}=={version} --hash=sha256:{item['download_info']['archive_info']['hashes']['sha256']}")
    lines.sort(key=str.lower)
    (ROOT / "requirements.lock").write_text(HEADER + "\n".join(lines) + "\n")
    print(f"requirements.lock: {len(lines)} packages")


if __name__ == "__main__":
    main()
