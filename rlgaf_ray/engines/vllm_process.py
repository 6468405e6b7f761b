"""Check that vLLM is installed and set the environment variables that it reads."""

from __future__ import annotations

import importlib.util
import os

import torch

from rlgaf_ray.errors import UserError
from rlgaf_ray.weights.choice import Backend

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # run the engine in this process
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


def require_vllm() -> None:
    """Check that vLLM is installed before anything is loaded.

    Raises:
        UserError: vLLM is not installed.
    """
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            'vLLM is not installed: pip install -e ".[cpu]" (or ".[gpu]"), or set rollout.engine=transformers'
        )


def prepare_process() -> None:
    """Set the environment variables that vLLM reads at import, unless the user has set them."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def prepare_children(transfer: Backend) -> None:
    """Set the environment of vLLM's worker processes: this process's thread count, and no CPU core binding."""
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    if transfer == "ipc":  # IPC handles reach the workers pickled, and only from this process
        os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
