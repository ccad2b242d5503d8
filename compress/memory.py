"""How the C library treats memory that a training frees."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""glibc's names of what can be set (malloc.h)."""
_ALWAYS, _USUAL_TRIM = (1 << 31) - 1, 64 << 20
_MMAP_THRESHOLDS, _USUAL_MMAP = (1 << 30, 32 << 20), 32 << 20
"""Bytes. Older versions of glibc refuse thresholds above 32 MB; that is also where its own adjustment ends once large blocks were freed."""
SET_BY_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")

_lock, _trainings = Lock(), 0


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep freed memory for the next step instead of giving it back to the system; give it back when the last training has ended.

    Every step of a training allocates and frees the same tensors, which glibc maps and unmaps each time: thousands of page faults in a step.
    They cost most in a fresh process (eight steps of the embedded talking-face original: 1.42 to 1.50 s of processor time, with it 1.12 to 1.13 s).
    The settings are the whole process's, and glibc adjusts them no more by itself afterwards. Does nothing where the C library is not glibc, or where
    the environment sets how it allocates.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is None or not hasattr(library, "mallopt") or any(name in os.environ for name in SET_BY_USER):
        yield
        return
    _enter(library)
    try:
        yield
    finally:
        _leave(library)


def _enter(library: ctypes.CDLL) -> None:
    global _trainings
    with _lock:
        _trainings += 1
        if _trainings == 1:
            library.mallopt(_TRIM_THRESHOLD, _ALWAYS)
            for threshold in _MMAP_THRESHOLDS:
                if library.mallopt(_MMAP_THRESHOLD, threshold):
                    break


def _leave(library: ctypes.CDLL) -> None:
    global _trainings
    with _lock:
        _trainings -= 1
        if _trainings == 0:
            library.mallopt(_TRIM_THRESHOLD, _USUAL_TRIM)
            library.mallopt(_MMAP_THRESHOLD, _USUAL_MMAP)
            library.malloc_trim(0)
