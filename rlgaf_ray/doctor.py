"""Finds torch's companion packages that were built for another torch, before they end the program with a riddle.

vLLM asks pip for torchvision, torchaudio and torchcodec, and pip may find them only for CUDA while torch is the CPU
build. transformers and vLLM import them wherever they are installed, in every process, so one that cannot be imported
ends both ("operator torchvision::nms does not exist", "Could not load this library"). Text models need none of them.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import shlex
import subprocess
import sys
from importlib.metadata import version

COMPANIONS = ("torchvision", "torchaudio", "torchcodec")


def broken_companions() -> list[str]:
    """Those of torch's companion packages that are installed but end transformers or vLLM when imported."""
    return [name for name in COMPANIONS if importlib.util.find_spec(name) and _is_broken(name)]


def _is_broken(name: str) -> bool:
    try:
        importlib.import_module(name)
    except (ImportError, RuntimeError):
        return name != "torchcodec"  # these two it raises where FFmpeg is missing, and its importers expect them
    except Exception:  # whatever else a library of another build raises while it loads
        return True
    return False


def complaint() -> str | None:
    """One sentence with the command that mends the installation; None where all is well."""
    broken = broken_companions()
    if not broken:
        return None
    return (
        f"{_listing(broken)} cannot be imported beside torch {version('torch')}, and transformers and vLLM end with "
        f"that; nothing here needs {'it' if len(broken) == 1 else 'them'}, so run: {shlex.join(_uninstall(broken))}"
    )


def _uninstall(names: list[str]) -> list[str]:
    return [sys.executable, "-m", "pip", "uninstall", "-y", *names]


def _listing(names: list[str]) -> str:
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def main() -> int:
    """``python -m rlgaf_ray.doctor [--fix]``: exit code 1 for a complaint, 0 where all is well or was mended."""
    parser = argparse.ArgumentParser(prog="rlgaf_ray.doctor", description="Check the installation.")
    parser.add_argument("--fix", action="store_true", help="uninstall the packages that do not fit")
    arguments = parser.parse_args()
    if not arguments.fix:
        sentence = complaint()
        print(sentence or "the installation is sound", file=sys.stderr if sentence else sys.stdout)
        return 1 if sentence else 0
    broken = broken_companions()
    if broken:
        subprocess.run([*_uninstall(broken), "-qq"], check=True)
        print(f"uninstalled {_listing(broken)}: built for another torch than {version('torch')}, and not needed here")
    return 0


if __name__ == "__main__":
    sys.exit(main())
