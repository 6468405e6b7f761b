"""Broken companion packages of torch: fake modules, imported in subprocesses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOREIGN = "raise RuntimeError('operator torchvision::nms does not exist')"
UNLOADABLE = "raise OSError('Could not load this library')"


@pytest.fixture
def run(tmp_path: Path):
    """Run Python in a subprocess with the given fake modules first on ``sys.path``."""

    def start(*command: str, **modules: str) -> subprocess.CompletedProcess[str]:
        for name in ("torchvision", "torchaudio", "torchcodec"):
            (tmp_path / f"{name}.py").write_text(modules.get(name, ""))
        script = "import sys, runpy; sys.path.insert(0, sys.argv[1]); sys.argv = sys.argv[2:]; "
        script += "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
        words = [sys.executable, "-c", script, str(tmp_path), *command]
        return subprocess.run(words, capture_output=True, text=True, check=False)

    return start


def test_importable_packages_pass(run) -> None:
    done = run("rlgaf_ray.doctor")
    assert (done.returncode, done.stderr) == (0, "") and "torchvision" not in done.stdout
    fixed = run("rlgaf_ray.doctor", "--fix")
    assert (fixed.returncode, fixed.stdout, fixed.stderr) == (0, "", "")


@pytest.mark.parametrize("error", ["RuntimeError('no FFmpeg')", "ImportError('no FFmpeg')"])
def test_torchcodec_without_ffmpeg_passes(run, error: str) -> None:
    assert run("rlgaf_ray.doctor", torchcodec=f"raise {error}").returncode == 0


def test_broken_packages_are_reported_with_the_command_that_removes_them(run) -> None:
    done = run("rlgaf_ray.doctor", torchvision=FOREIGN, torchaudio=UNLOADABLE, torchcodec=UNLOADABLE)
    assert (done.returncode, done.stderr) == (1, "")
    *_, finding, advice, count = done.stdout.splitlines()
    assert finding.split(maxsplit=2) == ["fail", "torch", "torchvision, torchaudio and torchcodec broken"]
    assert count.startswith("1 failed")
    assert advice.strip() == (
        f"-> torchvision, torchaudio and torchcodec cannot be imported with torch {torch.__version__}, so "
        "transformers and vLLM fail at import; rlgaf_ray does not need them: run "
        f"{sys.executable} -m pip uninstall -y torchvision torchaudio torchcodec"
    )


def test_training_does_not_start_with_a_broken_package(run, tmp_path: Path) -> None:
    done = run("rlgaf_ray.main", f"run.root={tmp_path}/runs", torchaudio=UNLOADABLE)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"error: torchaudio cannot be imported with torch {torch.__version__}, so transformers and vLLM fail at "
        f"import; rlgaf_ray does not need it: run {sys.executable} -m pip uninstall -y torchaudio\n"
    )
    assert not (tmp_path / "runs").exists()
