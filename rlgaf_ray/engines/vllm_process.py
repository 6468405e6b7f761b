"""The process that vLLM runs in: that vLLM is installed, and the environment that it reads."""

from __future__ import annotations

import importlib.util
import os

import torch

from rlgaf_ray.weights.choice import Backend

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine lives in this process
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


def require_vllm() -> None:
    """Say how to get vLLM where it is missing, before anything is loaded.

    Raises:
        ValueError: vLLM is not installed.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ValueError(
            'vLLM is not installed: pip install -e ".[cpu]" (or ".[gpu]"), or set rollout.engine=transformers'
        )


def prepare_process() -> None:
    """Set what vLLM reads when it is imported, unless the user has."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def prepare_children(transfer: Backend) -> None:
    """Set what processes that vLLM starts read: as many threads as here, and on CPU no cores of its choice."""
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    if transfer == "ipc":  # handles to the learner's memory reach the children pickled, by way of this process alone
        os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
