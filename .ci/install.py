"""Installs the package into a virtual environment: with uv where it is there or can be installed, else with pip.

    python .ci/install.py .venv cpu,dev     pyproject.toml with these extras, at the versions of constraints.txt
    python .ci/install.py .venv --locked    requirements.lock alone, every wheel against its hash

INSTALLER=pip in the environment skips uv. uv does not read pip's configuration, so its index, its wheel folders and its
certificate are passed on; further indexes are not, because uv does not merge the files of one version from several.
The CPU build of torch comes from pip's wheel folders where it has any, else from PyTorch's CPU index.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# pip's setting, uv's variable, and what separates several values in it
PASSED_ON = [
    ("index-url", "UV_DEFAULT_INDEX", " "),
    ("find-links", "UV_FIND_LINKS", ","),
    ("cert", "SSL_CERT_FILE", " "),
]


def main() -> int:
    venv, what = Path(sys.argv[1]), sys.argv[2]
    locked = what == "--locked"
    python = venv / "bin" / "python"
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    uv = None if os.environ.get("INSTALLER") == "pip" else find_uv(venv, pip, may_install=not locked)
    environment = dict(os.environ)
    if uv is None:
        command = [*pip, "install"]
        compile_now = ["--no-compile"]  # pip compiles on one core; compileall below takes all of them
    else:
        command = [uv, "pip", "install", "--python", str(python)]
        compile_now = ["--compile-bytecode"]
        environment = uv_environment(environment, pip_settings(pip), cpu=locked or "cpu" in what.split(","))
    if locked:  # setuptools is in the lock: the build takes it from there, not from an index
        steps = [
            [*command, *compile_now, "--no-deps", "--require-hashes", "-r", "requirements.lock"],
            [*command, *compile_now, "--no-deps", "--no-build-isolation", "-e", "."],
        ]
    else:
        steps = [[*command, *compile_now, "-c", "constraints.txt", "-e", f".[{what}]"]]
    for step in steps:
        if (code := subprocess.run(step, cwd=ROOT, env=environment, check=False).returncode) != 0:
            return code
    if uv is None:  # some files are for other versions of Python
        compile_all = [str(python), "-m", "compileall", "-q", "-j", "0", str(venv / "lib")]
        subprocess.run(compile_all, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return 0


def find_uv(venv: Path, pip: list[str], *, may_install: bool) -> str | None:
    """The command; installed into the environment where it is not on the path. None where it cannot be had."""
    if found := shutil.which("uv"):
        return found
    inside = venv / "bin" / "uv"
    if may_install and not inside.exists():
        subprocess.run([*pip, "install", "-qq", "uv"], check=False)
    return str(inside) if inside.exists() else None


def pip_settings(pip: list[str]) -> dict[str, list[str]]:
    """What pip would use, from its files and from the environment, which wins."""
    listed = subprocess.run([*pip, "config", "list"], capture_output=True, text=True, check=False).stdout
    settings: dict[str, list[str]] = {}
    for section in ("global.", "install.", ":env:."):
        for line in listed.splitlines():
            name, separator, value = line.partition("=")
            if separator and name.startswith(section):
                settings[name.removeprefix(section)] = str(ast.literal_eval(value)).split()
    return settings


def uv_environment(environment: dict[str, str], settings: dict[str, list[str]], *, cpu: bool) -> dict[str, str]:
    """The environment with pip's settings in uv's variables; those that are set stay."""
    passed = {variable: separator.join(settings[name]) for name, variable, separator in PASSED_ON if settings.get(name)}
    if cpu and "find-links" not in settings:
        passed["UV_TORCH_BACKEND"] = "cpu"
    return passed | environment


if __name__ == "__main__":
    sys.exit(main())
