"""Memory on the CPU: keep what one training step frees for the next."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # of malloc.h
# What glibc comes to by itself in a process that has freed large blocks, bytes and a number.
_USUAL = {M_MMAP_THRESHOLD: 2**25, M_TRIM_THRESHOLD: 2**26, M_MMAP_MAX: 2**16}
_kept_for: set[str] = set()


def keep_freed_memory() -> bool:
    """Ask the C library not to return large freed blocks to the system, for this process.

    A step of a PixelCNN on the CPU frees gigabytes of maps and needs them again at once. By default
    glibc hands each block above 32 MB back and gets it anew page by page, which takes time. For
    training programs: `python -m scmixvi.image` calls it where there is no GPU.

    Returns
    -------
    Whether it was done: True with glibc on Linux, False elsewhere, where nothing changes.

    References
    ----------
    https://man7.org/linux/man-pages/man3/mallopt.3.html
    """
    if not _set({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1}):
        return False
    _kept_for.add("the process")
    return True


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """As :func:`keep_freed_memory` for as long as it lasts; what is free is given back after it.

    glibc also gives smaller blocks back once many are free, as at the end of a step of MixtureSCVI
    with many genes, and the system fills what the next step gets with zeros, page by page.
    """
    if _kept_for or not _set({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1}):
        yield
        return
    _kept_for.add("a while")
    try:
        yield
    finally:
        _kept_for.remove("a while")
        if not _kept_for:
            _set(_USUAL)
            ctypes.CDLL(None).malloc_trim(0)


def _set(options: dict[int, int]) -> bool:
    """Whether the C library took all of them."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all([bool(mallopt(option, value)) for option, value in options.items()])
