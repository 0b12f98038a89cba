"""Memory of the CPU that a training step frees and the next one asks for again."""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

# glibc's names (malloc.h) and bounds, in bytes. What is larger than the largest threshold is given
# back whatever is set, so that a step's tensors should stay below it.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 2**25
_KEPT = 2**30


@contextmanager
def memory_kept() -> Iterator[None]:
    """Have glibc keep what is freed, up to 1 GB.

    By itself it gives freed memory back to the system once some 64 MB are free, and the system
    fills with zeros, page by page, what the next step is given: at 4000 genes and S = 8 a seventh
    to a third of its time. Afterwards the thresholds are those that glibc comes to by itself in a
    process that has freed large blocks, and what is free is given back. With another C library
    nothing is done.
    """
    library = _glibc()
    if library is None:
        yield
        return
    library.mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
    library.mallopt(_TRIM_THRESHOLD, _KEPT)
    try:
        yield
    finally:
        library.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_MMAP_THRESHOLD)
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
