"""Run a compiled loop over rows on torch's own threads.

Threads of our own would share the processors with torch's, which keep spinning between two of its
operations. So the loop joins torch's OpenMP team, through libgomp's entry for compiled parallel
regions: torch's own copy (pip's wheels for Linux), or the one that the process has. Where there is
none the loop runs on the calling thread.

No thread holds Python's lock: what the loop works on is handed over as a block of integers in
memory, addresses and sizes. Every thread takes the next rows until none is left.
"""

import ctypes
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

_SHARES = 4  # that a thread takes, so that one that is late does not keep the others waiting


def in_parallel(entry: Callable[[], Any], n_rows: int, arguments: Sequence[int]) -> None:
    """Call a compiled entry on every thread of torch's team.

    Parameters
    ----------
    entry
        A :func:`~scmixvi.singlecell._compiled.thread_entry`. It gets the address of `HEAD`
        integers followed by the arguments, and works on the rows that
        :func:`~scmixvi.singlecell._kernels.next_rows` gives it until there are none.
    n_rows
        Number of rows.
    arguments
        Sizes, and addresses of memory that the caller keeps alive.
    """
    n_threads = min(torch.get_num_threads(), n_rows)
    library = _libgomp()
    if library is None:
        n_threads = 1
    a_time = n_rows if n_threads < 2 else -(-n_rows // (_SHARES * n_threads))
    block = np.array([0, a_time, n_rows, *arguments], np.int64)
    if n_threads < 2:
        entry().ctypes(block.ctypes.data)
    else:
        library.GOMP_parallel(entry().address, block.ctypes.data, n_threads, 0)


@functools.cache
def _libgomp() -> ctypes.CDLL | None:
    """The libgomp that torch brings, else whichever the process has, else None."""
    found = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    try:
        # By name: where another library brought one of that name first, torch uses that one too.
        name = found[0].name if found else "libgomp.so.1"
        library = ctypes.CDLL(name, mode=os.RTLD_NOLOAD)
        a_pointer, number = ctypes.c_void_p, ctypes.c_uint
        library.GOMP_parallel.argtypes = [a_pointer, a_pointer, number, number]
        library.GOMP_parallel.restype = None
    except (OSError, AttributeError):
        return None
    return library
