"""Products of float32 matrices on a CPU, by the faster of torch's two libraries.

torch multiplies float32 matrices with Intel's MKL, and turns to oneDNN for other types only. On
AMD's processors with AVX-512 oneDNN takes half the time (`python -m benchmarks.products`). Both
compute in float32; sums of 1200 products are off by up to five times as much from oneDNN, a few
millionths of their standard deviation. Everywhere else, for whatever is not plain float32, and
in differentiation forwards, the products here are torch's own.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from scmixvi.core.modes import differentiates_forwards

_WIDE = 2**22  # multiplications from which on the choice matters


class Linear(nn.Linear):
    """:class:`torch.nn.Linear`, multiplied by :func:`linear`."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Map `[..., n_in]` to `[..., n_out]`."""
        return linear(inputs, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply :func:`torch.nn.functional.linear`, whose gradients are :func:`product`'s too.

    Parameters
    ----------
    x
        `[..., k]`.
    weight, bias
        `[n, k]` and `[n]`.

    Returns
    -------
    `[..., n]`.
    """
    rows = x.flatten(0, -2) if x.dim() > 2 else x
    if not _suits(rows, weight, bias):
        return functional.linear(x, weight, bias)
    found = _Linear.apply(rows, weight, bias)
    return found.unflatten(0, x.shape[:-1]) if x.dim() > 2 else found


def stacked_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply S linear layers by one batched product, or by S of :func:`linear` where it is faster.

    Parameters
    ----------
    x
        `[S, N, k]`, or `[N, k]` or `[1, N, k]` shared by all.
    weight, bias
        `[S, k, n]` and `[S, 1, n]`, or `[1, k, n]` and `[1, 1, n]` of one layer for all.

    Returns
    -------
    `[S, N, n]`.
    """
    if len(weight) == 1:
        x = x if x.dim() == 3 else x[None]
        return linear(x, weight.squeeze(0).T, None if bias is None else bias.flatten())
    shared = x.dim() == 2 or len(x) == 1
    if _suits(x if x.dim() == 2 else x[0], weight[0].T, None if bias is None else bias[0, 0]):
        inputs = [x.flatten(0, -2)] * len(weight) if shared else x.unbind()
        biases = [None] * len(weight) if bias is None else bias.squeeze(1).unbind()
        layers = zip(inputs, weight.unbind(), biases, strict=True)
        return torch.stack([_Linear.apply(rows, own.T, b) for rows, own, b in layers])
    if bias is None:
        return x @ weight
    return torch.baddbmm(bias, x.expand(len(weight), *x.shape[-2:]), weight)


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply a `[m, k]` by the transpose of b `[n, k]`, and add a bias `[n]`: `[m, n]`.

    Gradients pass, by torch's own product.
    """
    needs_grad = any(t.requires_grad for t in (a, b, bias) if t is not None)
    if (needs_grad and torch.is_grad_enabled()) or not _suits(a, b, bias):
        return functional.linear(a, b, bias)
    return _by_onednn(a, b, bias)


def transposed_product(a: Tensor, b: Tensor) -> Tensor:
    """Multiply the transpose of a wide a `[k, m]` by a narrower b `[k, n]`: `[m, n]`.

    oneDNN makes its first factor contiguous, so that it is given b there.
    """
    return _by_onednn(b.T, a.T).T if _suits(b.T, a.T) else torch.mm(a.T, b)


class _Linear(torch.autograd.Function):
    """x `[m, k]`, weight `[n, k]`, bias `[n]` or None that suit -> x weight^T + bias."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _by_onednn(x, weight, bias)

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor
    ) -> None:
        x, weight, _ = inputs
        wants_x, wants_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if wants_weight else None, weight if wants_x else None)
        ctx.is_turned = weight.stride(0) == 1

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        of_weight = None
        if wants_weight:  # in the weight's own order: another would be copied into it
            of_weight = product(x.T, grad.T).T if ctx.is_turned else product(grad.T, x.T)
        return (
            product(grad, weight.T) if wants_x else None,
            of_weight,
            grad.sum(0) if wants_bias else None,
        )


def _suits(a: Tensor, b: Tensor, bias: Tensor | None = None) -> bool:
    """Whether oneDNN is to multiply these. Of shapes that do not fit torch says more."""
    if torch.compiler.is_compiling() or not onednn_is_faster():
        return False
    return (
        a.dim() == b.dim() == 2
        and a.shape[1] == b.shape[1]
        and (bias is None or (bias.shape == b.shape[:1] and bias.dtype is b.dtype))
        and a.dtype is b.dtype is torch.float32
        and a.device.type == b.device.type == "cpu"
        and a.layout is b.layout is torch.strided
        and len(a) * b.numel() >= _WIDE
        and bool(torch.backends.mkldnn.enabled)
        and not _is_torchs_choice()
        and not differentiates_forwards()
        and not torch.is_autocast_enabled("cpu")
    )


def _is_torchs_choice() -> bool:
    """Whether torch has been told to round the factors to bf16, which it then has oneDNN do."""
    try:
        return torch.get_float32_matmul_precision() == "medium"
    except RuntimeError:  # torch's newer switches have been used, and do not agree
        return True


def _by_onednn(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")


@cache
def onednn_is_faster() -> bool:
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
    """By torch's name of the processor; older torch has none."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return str(capabilities.get("cpu_name", "")).startswith("AMD")
