"""How loops are compiled with numba, and what they need to read memory by its address."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import carray, cfunc, config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

OPTIONS = {"error_model": "numpy"}


def available() -> bool:
    """Whether compiled code runs: with NUMBA_DISABLE_JIT it would be interpreted."""
    return not config.DISABLE_JIT


def compiled(*fastmath: str) -> Callable:
    """A compiler whose results are kept on disk where there is a place to keep them."""
    options = OPTIONS | {"nogil": True, "fastmath": {"contract", *fastmath}}
    return lambda function: _kept(njit, function, options)


def thread_entry(function: Callable) -> Any:
    """Compile what a thread calls with the address of a block of integers."""
    signature = types.void(types.int64)
    return _kept(lambda **options: cfunc(signature, **options), function, OPTIONS)


def _kept(compiler: Callable, function: Callable, options: dict) -> Any:
    try:
        return compiler(cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's can be written
        return compiler(**options)(function)


@intrinsic
def _pointer(_: Any, address: Any) -> tuple:
    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@intrinsic
def fetch_and_add(_: Any, address: Any, number: Any) -> tuple:
    """Add to the integer at an address and return what it was; atomic."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        place = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", place, arguments[1], "monotonic")

    return types.int64(types.int64, types.int64), generate


@compiled()
def array_at(address, shape, dtype):
    """The contiguous array at an address."""
    return carray(_pointer(address), shape, dtype)
