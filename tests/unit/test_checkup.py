"""Machine checks of ``rlgaf doctor``, on fixed inputs rather than this machine's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlgaf_ray import checkup
from rlgaf_ray.checkup import (
    GIB,
    check_cores,
    check_disk,
    check_gpus,
    check_machine,
    check_memory,
    check_packages,
    check_processor,
    check_python,
    check_ray,
    check_shm,
    check_vllm,
    requires_of,
)


def test_this_machine() -> None:
    found = check_machine()
    assert [finding.name for finding in found] == [
        "python", "packages", "processor", "cores", "memory", "/dev/shm", "disk", "temporary", "GPUs", "Ray", "vLLM",
    ]  # fmt: skip
    assert all(finding.value for finding in found)
    assert all(finding.advice for finding in found if finding.verdict != "ok")
    assert "fail" not in [finding.verdict for finding in found[:2]]


def test_nothing_heavy_is_imported() -> None:
    script = (
        "import sys, rlgaf_ray.doctor; print(sorted({'torch', 'ray', 'pydantic', 'click', 'rich'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("flags", "expected", "verdict"),
    [
        ("avx2 avx512f avx512_bf16 amx_tile amx_bf16", "X: AVX2, AVX512, AVX512-BF16, AMX", "ok"),
        ("avx2 avx512f amx_tile", "X: AVX2, AVX512", "slow"),
        ("avx2", "X: AVX2", "slow"),
        ("sse4_2", "X: no AVX2", "slow"),
        ("", "X", "ok"),
    ],
)
def test_the_processor(flags: str, expected: str, verdict: str) -> None:
    found = check_processor(flags.split(), "X")
    assert (found.value, found.verdict) == (expected, verdict)
    if verdict == "slow":
        assert ("float32" if "AVX2," in expected or expected.endswith(": AVX2") else "transformers") in found.advice


def test_python_and_packages() -> None:
    assert check_python((3, 11, 0)).verdict == check_python((3, 12, 1)).verdict == "ok"
    assert check_python((3, 10, 9)).verdict == "fail"
    assert check_packages(["click", "numpy"]).verdict == "ok"
    found = check_packages(["click", "no-such-package"])
    assert (found.verdict, found.value, found.advice) == (
        "fail", "missing: no-such-package", "pip install no-such-package",
    )  # fmt: skip
    assert {"torch", "ray"} <= set(requires_of("rlgaf_ray")) and "optuna" not in requires_of("rlgaf_ray")
    assert requires_of("no-such-package") == []


def test_cores_and_memory() -> None:
    assert [check_cores(*each).verdict for each in ((8, None), (8, 4.0), (8, 1.5), (1, None))] == [
        "ok", "ok", "slow", "slow",
    ]  # fmt: skip
    assert check_cores(8, 4.0).value == "4 of 8 (the container's limit)"
    assert [check_memory(each).verdict for each in (16 * GIB, 2 * GIB, None)] == ["ok", "slow", "ok"]


def test_memory_and_cores_respect_the_containers_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/proc/meminfo": "MemTotal: 16000 kB\nMemAvailable: 9000 kB\n",
        "/sys/fs/cgroup/memory.max": "4096000\n",
        "/sys/fs/cgroup/memory.current": "1024000\n",
        "/sys/fs/cgroup/cpu.max": "150000 100000\n",
    }
    monkeypatch.setattr(checkup, "_text", lambda path: files.get(path, ""))
    assert (checkup.total_memory(), checkup.available_memory(), checkup.quota()) == (4096000, 3072000, 1.5)
    files |= {"/sys/fs/cgroup/memory.max": "max\n", "/sys/fs/cgroup/cpu.max": "max 100000\n"}
    assert (checkup.total_memory(), checkup.available_memory(), checkup.quota()) == (16384000, 9216000, None)


def test_disks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def with_free(free: int, total: int = 100 * GIB) -> None:
        usage = SimpleNamespace(free=free, used=total - free, total=total)
        monkeypatch.setattr("shutil.disk_usage", lambda path: usage)

    with_free(50 * GIB)
    assert check_disk("disk", tmp_path).verdict == check_shm(tmp_path, 16 * GIB).verdict == "ok"
    with_free(4 * GIB)
    assert check_disk("disk", tmp_path).verdict == "slow"
    assert check_shm(tmp_path, 16 * GIB).advice.endswith("docker run --shm-size=4.8g")
    assert check_shm(tmp_path, 8 * GIB).verdict == "ok"
    with_free(40 * GIB, total=1000 * GIB)
    assert check_disk("temporary", tmp_path).verdict == "slow", "Ray does not spill to a disk that is nearly full"
    assert check_shm(tmp_path / "none", 16 * GIB).verdict == "ok"


def test_gpus_ray_and_vllm() -> None:
    assert check_gpus([], "2.13.0+cpu").verdict == "ok"
    assert check_gpus(["H200, 143771 MiB"] * 2, "2.13.0+cu129").value == "2 x H200, 143771 MiB"
    assert "make EXTRAS=gpu,dev" in check_gpus(["H200"], "2.13.0+cpu").advice
    assert check_ray(None, "").verdict == "fail"
    assert check_ray("2.60.0", "10.0.0.1:6379").value == "2.60.0, joins 10.0.0.1:6379 (RAY_ADDRESS)"
    verdicts = {
        (None, None, False): "slow",
        ("0.32.0", None, False): "fail",
        ("0.32.0", None, True): "ok",
        (None, "0.32.0", False): "ok",
        (None, "0.32.0", True): "slow",
    }
    for (gpu_build, cpu_build, has_gpu), verdict in verdicts.items():
        assert check_vllm(gpu_build, cpu_build, has_gpu=has_gpu).verdict == verdict


def test_gpus_are_read_from_nvidia_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert checkup.gpu_names() == []
    program.write_text("#!/bin/sh\necho 'NVIDIA H200, 143771 MiB'\n")
    program.chmod(0o755)
    assert checkup.gpu_names() == ["NVIDIA H200, 143771 MiB"]
    program.write_text("#!/bin/sh\necho 'no driver'\nexit 9\n")
    assert checkup.gpu_names() == []
