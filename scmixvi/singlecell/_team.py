"""Run a compiled loop on torch's own threads.

Threads of our own would share the processors with torch's, which keep spinning between two of its
operations. So the loop joins torch's OpenMP team, through libgomp's
entry for compiled parallel regions. Where torch does not come with libgomp (it does on Linux) the
loop runs on the calling thread.
"""

import ctypes
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_BODY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def in_parallel(loop: Callable[..., None], n_rows: int, *arguments: Any) -> None:
    """Call `loop(*arguments, start, stop)` on ranges of rows that make up 0 to `n_rows`.

    Parameters
    ----------
    loop
        Compiled code that lets go of the interpreter, and whose ranges do not touch each other.
    n_rows
        Number of rows.
    *arguments
        What comes before the range.

    Raises
    ------
    Exception
        What `loop` raised in any thread; the other ranges are finished first.
    """
    n_threads = min(torch.get_num_threads(), n_rows)
    library = _libgomp()
    if library is None or n_threads < 2:
        loop(*arguments, 0, n_rows)
        return
    loop(*arguments, 0, 0)  # so that it is compiled by this thread
    raised: list[BaseException] = []

    def of_one_thread(_: Any) -> None:
        try:
            i, n = library.omp_get_thread_num(), library.omp_get_num_threads()
            loop(*arguments, n_rows * i // n, n_rows * (i + 1) // n)
        except BaseException as error:  # nothing may pass through C
            raised.append(error)

    library.GOMP_parallel(_BODY(of_one_thread), None, n_threads, 0)
    if raised:
        raise raised[0]


@functools.cache
def _libgomp() -> ctypes.CDLL | None:
    """The libgomp that torch brings and computes with, or None."""
    found = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    try:
        # By name: where another library brought one of that name first, torch uses that one too.
        library = ctypes.CDLL(found[0].name, mode=os.RTLD_NOLOAD)
        library.GOMP_parallel.argtypes = [_BODY, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        library.GOMP_parallel.restype = None
    except (IndexError, OSError, AttributeError):
        return None
    return library
