"""Memory that the process has freed, and that its allocator keeps."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h

LEAST, USUAL = 2**20, 2**25  # bytes; the second is where glibc's own threshold ends as blocks are freed


@contextmanager
def given_back() -> Iterator[None]:
    """Have blocks of 1 MiB and more given back to the system when they are freed inside the block, where malloc is
    glibc's. By itself it keeps those of up to 32 MiB, which of a model that goes by tensor by tensor is all of it."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        yield
        return
    mallopt(M_MMAP_THRESHOLD, LEAST)
    try:
        yield
    finally:
        mallopt(M_MMAP_THRESHOLD, USUAL)
        mallopt(M_TRIM_THRESHOLD, 2 * USUAL)
