"""How loops are compiled with numba, and what they need to read memory by its address."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
from numba import carray, cfunc, config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

HEAD = 3  # a block's first integers: rows taken, rows to take at a time, number of rows

OPTIONS = {"error_model": "numpy"}


def available() -> bool:
    """Whether compiled code runs: with NUMBA_DISABLE_JIT it would be interpreted."""
    return not config.DISABLE_JIT


def compiled(*fastmath: str) -> Callable:
    """A compiler whose results are kept on disk where there is a place to keep them."""
    options = OPTIONS | {"nogil": True, "fastmath": {"contract", *fastmath}}
    return lambda function: _kept(njit, function, options)


def thread_entry(function: Callable) -> Callable[[], Any]:
    """What a thread calls with the address of a block of integers, compiled when first asked."""
    signature = types.void(types.int64)
    compiler = partial(cfunc, signature)
    return cache(lambda: _kept(compiler, function, OPTIONS))


def _kept(compiler: Callable, function: Callable, options: dict) -> Any:
    try:
        return compiler(cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's can be written
        return compiler(**options)(function)


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
