"""How loops are compiled with numba."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

from numba import cfunc, config, njit, types

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
