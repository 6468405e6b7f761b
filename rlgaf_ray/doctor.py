"""Check the installation, in particular for torch companion packages that were built for another torch.

vLLM requires torchvision, torchaudio and torchcodec, and pip may find only CUDA builds of them for a CPU build of
torch. transformers and vLLM import every one that is installed, so a broken one makes both fail ("operator
torchvision::nms does not exist", "Could not load this library"). Text models need none of them.
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
    """Return the installed companion packages of torch that make transformers or vLLM fail at import."""
    return [name for name in COMPANIONS if importlib.util.find_spec(name) and _is_broken(name)]


def _is_broken(name: str) -> bool:
    try:
        importlib.import_module(name)
    except (ImportError, RuntimeError):
        return name != "torchcodec"  # torchcodec raises these without FFmpeg, and its importers handle them
    except Exception:  # a library of another build can raise anything, such as OSError
        return True
    return False


def complaint() -> str | None:
    """Return an error message with the command that repairs the installation; None if nothing is broken."""
    broken = broken_companions()
    if not broken:
        return None
    return (
        f"{_listing(broken)} cannot be imported with torch {version('torch')}, so transformers and vLLM fail at "
        f"import; rlgaf_ray does not need {'it' if len(broken) == 1 else 'them'}: run {shlex.join(_uninstall(broken))}"
    )


def _uninstall(names: list[str]) -> list[str]:
    return [sys.executable, "-m", "pip", "uninstall", "-y", *names]


def _listing(names: list[str]) -> str:
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def run(*, fix: bool) -> int:
    """Print all findings, or with ``fix`` uninstall broken packages. Return 1 if a check failed, else 0."""
    if fix:
        return _fix()
    problem = complaint()
    installation = Finding("torch", _listing(broken_companions()) + " broken", problem, "fail") if problem else None
    findings = [*check_machine(), *([installation] if installation else [])]
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        print(f"{finding.verdict:<4}  {finding.name:<{width}}  {finding.value}")
        if finding.advice:
            print(f"      {'':<{width}}  -> {finding.advice}")
    counts = Counter(finding.verdict for finding in findings)
    print(f"{counts['fail']} failed, {counts['slow']} slow" if counts["fail"] or counts["slow"] else "all good")
    return 1 if counts["fail"] else 0


def _fix() -> int:
    broken = broken_companions()
    if broken:
        subprocess.run([*_uninstall(broken), "-qq"], check=True)
        print(f"uninstalled {_listing(broken)}: built for a torch other than {version('torch')}, and not needed")
    return 0


def main() -> int:
    """Run ``python -m rlgaf_ray.doctor [--fix]``: ``rlgaf doctor`` for an incomplete installation."""
    parser = argparse.ArgumentParser(prog="rlgaf_ray.doctor", description="Check the installation and the machine.")
    parser.add_argument("--fix", action="store_true", help="uninstall packages built for another torch")
    return run(fix=parser.parse_args().fix)


if __name__ == "__main__":
    sys.exit(main())
