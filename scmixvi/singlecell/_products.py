"""Wide products of float32 matrices on a CPU, by the faster of torch's two libraries.

torch multiplies float32 matrices with Intel's MKL, and turns to oneDNN for other types only. On
AMD's processors with AVX-512 oneDNN takes half the time (`python -m benchmarks.products`). Both
compute in float32; sums of 1200 products are off by up to four times as much from oneDNN, a few
millionths of their standard deviation. Everywhere else, and for whatever is not a plain matrix of
float32, the products here are torch's own.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_WIDE = 2**22  # multiplications from which on the choice matters


def product(a: Tensor, b: Tensor) -> Tensor:
    """Multiply a `[m, k]` by the transpose of b `[n, k]`: `[m, n]`.

    Gradients pass, by torch's own product.
    """
    if torch.is_grad_enabled() and (a.requires_grad or b.requires_grad):
        return torch.mm(a, b.T)
    return _by_onednn(a, b) if _suits(a, b) else torch.mm(a, b.T)


def transposed_product(a: Tensor, b: Tensor) -> Tensor:
    """Multiply the transpose of a wide a `[k, m]` by a narrower b `[k, n]`: `[m, n]`.

    oneDNN makes its first factor contiguous, so that it is given b there.
    """
    return _by_onednn(b.T, a.T).T if _suits(b.T, a.T) else torch.mm(a.T, b)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply :func:`torch.nn.functional.linear`, whose gradients are :func:`product`'s too."""
    if x.dim() == 2 and _suits(x, weight):
        found = _Product.apply(x, weight)
        return found if bias is None else found + bias
    return functional.linear(x, weight, bias)


class _Product(torch.autograd.Function):
    """a `[m, k]`, b `[n, k]` -> a b^T."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        return product(a, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        wants_a, wants_b = ctx.needs_input_grad
        return (
            product(grad, b.T) if wants_a else None,
            product(grad.T, a.T) if wants_b else None,
        )


def _suits(a: Tensor, b: Tensor) -> bool:
    """Whether oneDNN is to multiply these."""
    if torch.compiler.is_compiling() or not _onednn_is_faster():
        return False
    return (
        a.dtype is b.dtype is torch.float32
        and a.device.type == b.device.type == "cpu"
        and a.layout is b.layout is torch.strided
        and len(a) * b.numel() >= _WIDE
        and bool(torch.backends.mkldnn.enabled)
        and not _is_torchs_choice()
        and not torch.is_autocast_enabled("cpu")
    )


def _is_torchs_choice() -> bool:
    """Whether torch has been told to round the factors to bf16, which it then has oneDNN do."""
    try:
        return torch.get_float32_matmul_precision() == "medium"
    except RuntimeError:  # torch's newer switches have been used, and do not agree
        return True


def _by_onednn(a: Tensor, b: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")


@cache
def _onednn_is_faster() -> bool:
    """Whether this is a processor of AMD with AVX-512, and torch has both libraries."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not _is_amd():
        return False
    try:  # torch's compiler calls it too; of another torch it may want something else
        a, b = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(4, 3)
        return bool(torch.equal(_by_onednn(a, b), torch.mm(a, b.T)))
    except (AttributeError, RuntimeError, TypeError):
        return False


def _is_amd() -> bool:
    from llvmlite.binding import get_host_cpu_name  # numba's

    return get_host_cpu_name().startswith("znver")
