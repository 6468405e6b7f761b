"""Checks the installation: first of all for companion packages of torch that were built for another torch.

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
from collections import Counter
from importlib.metadata import version

from rlgaf_ray.checkup import Finding, check_machine

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


def run(*, fix: bool) -> int:
    """Print what was found, or with ``fix`` uninstall what does not fit. 1: something cannot work."""
    if fix:
        return _mend()
    sentence = complaint()
    installation = Finding("torch", _listing(broken_companions()) + " broken", sentence, "fail") if sentence else None
    findings = [*check_machine(), *([installation] if installation else [])]
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        print(f"{finding.verdict:<4}  {finding.name:<{width}}  {finding.value}")
        if finding.advice:
            print(f"      {'':<{width}}  -> {finding.advice}")
    counts = Counter(finding.verdict for finding in findings)
    print(f"{counts['fail']} cannot work, {counts['slow']} slow" if counts["fail"] or counts["slow"] else "all is well")
    return 1 if counts["fail"] else 0


def _mend() -> int:
    broken = broken_companions()
    if broken:
        subprocess.run([*_uninstall(broken), "-qq"], check=True)
        print(f"uninstalled {_listing(broken)}: built for another torch than {version('torch')}, and not needed here")
    return 0


def main() -> int:
    """``python -m rlgaf_ray.doctor [--fix]``, the same as ``rlgaf doctor``, before all packages are there."""
    parser = argparse.ArgumentParser(prog="rlgaf_ray.doctor", description="Check the installation and the machine.")
    parser.add_argument("--fix", action="store_true", help="uninstall the packages that do not fit")
    return run(fix=parser.parse_args().fix)


if __name__ == "__main__":
    sys.exit(main())
