"""Choice of bfloat16 autocast, measured at twice the speed of float32 where supported (AVX512_BF16, AMX, GPUs)."""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager
from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]


def processor_type() -> str:
    """Return the machine and its best instructions for matrix products, such as ``x86_64 avx2``.

    ``learner.precision=auto`` depends on it.
    """
    capabilities = torch.cpu.get_capabilities()
    kinds = [kind for kind in ("amx_bf16", "avx512_bf16", "avx2") if capabilities.get(kind)]
    return " ".join([platform.machine(), *kinds[:1]])


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the dtype for matrix products on this device."""
    if precision != "auto":
        return getattr(torch, precision)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    capabilities = torch.cpu.get_capabilities()
    has_bfloat16 = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if has_bfloat16 else torch.float32


def autocast(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[None]:
    """Return an autocast context for ``dtype``, disabled for float32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
