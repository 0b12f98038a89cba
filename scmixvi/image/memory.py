"""Memory on the CPU: keep what one training step frees for the next."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


def keep_freed_memory() -> bool:
    """Ask the C library not to return large freed blocks to the system, for this process.

    A step of a PixelCNN on the CPU frees gigabytes of maps and needs them again at once. By default
    glibc hands each block above 32 MB back and gets it anew page by page, which takes time. For
    training programs: `python -m scmixvi.image` calls it where there is no GPU, the library never
    does by itself.

    Returns
    -------
    Whether it was done: True with glibc on Linux, False elsewhere, where nothing changes.

    References
    ----------
    https://man7.org/linux/man-pages/man3/mallopt.3.html
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))
