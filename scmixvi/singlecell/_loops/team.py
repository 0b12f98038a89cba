"""Run a compiled loop over rows on torch's own threads.

Threads of our own would share the processors with torch's, which keep spinning between two of its
operations. So the loop joins torch's OpenMP team, through libgomp's entry for compiled parallel
regions: torch's own copy (pip's wheels for Linux), or the one that the process has. Where there is
none the loop runs on the calling thread.

No thread holds Python's lock: what the loop works on is handed over as a block of integers in
memory, addresses and sizes. Every thread takes the next rows until none is left.

Whoever changes what is compiled here changes the files of its callers too: numba keeps what it
compiles until those change.
"""

import ctypes
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from scmixvi.singlecell._loops.compiled import compiled

HEAD = 3  # a block's first integers: rows taken, rows to take at a time, number of rows
_SHARES = 4  # that a thread takes, so that one that is late does not keep the others waiting


@intrinsic
def _pointer(_: Any, address: Any) -> tuple:
    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@intrinsic
def _fetch_and_add(_: Any, address: Any, number: Any) -> tuple:
    """Add to the integer at an address and return what it was; atomic."""

    def generate(context, builder, signature, arguments):
        place = builder.inttoptr(arguments[0], arguments[1].type.as_pointer())
        return builder.atomic_rmw("add", place, arguments[1], "monotonic")

    return types.int64(types.int64, types.int64), generate


@compiled()
def array_at(address, shape, dtype):
    """The contiguous array at an address."""
    return carray(_pointer(address), shape, dtype)


@compiled()
def next_rows(address):
    """In a thread: the next rows, start to stop; none are left once start is not below stop."""
    head = array_at(address, HEAD, np.int64)
    start = _fetch_and_add(address, head[1])
    return start, min(start + head[1], head[2])


def in_parallel(entry: Callable[[], Any], n_rows: int, arguments: Sequence[int]) -> None:
    """Call a compiled entry on every thread of torch's team.

    Parameters
    ----------
    entry
        A :func:`~scmixvi.singlecell._loops.compiled.thread_entry`. It gets the address of `HEAD`
        integers followed by the arguments, and works on the rows that
        `next_rows` gives it until there are none.
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
