"""Keeping the memory of one step for the next, and giving it back after the last."""

from __future__ import annotations

import ctypes
import gc
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc, malloc.h


def keep_freed_memory() -> None:
    """Stop glibc from giving large blocks back to the system, for the rest of this process's life.

    A training step frees its activations and takes as much again in the next one; handed back in between, every page
    is faulted in anew: up to a fifth of a step. Nothing happens on other C libraries. Actors get the same from their
    environment (``actors/placement.py``), where huge pages can be asked for too.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_MMAP_MAX, 0)


def release_freed_memory() -> None:
    """Hand what was kept back to the system, when no more steps follow in this process.

    Of a warm-up of 135 M parameters that is over 3 GB, which the actors need.
    """
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
