r"""The last step of SCVI's decoder and the likelihood of counts, in one pass on the CPU.

The decoder's heads give the scale's scores and the zero inflation logits, `[K*B, G]` each. Scale,
mean and their gradients are never written out: a compiled loop (`kernels`) takes the products of
the heads to the log-likelihood and leaves its slopes in their place, so that what remains of the
backward pass are the heads' own matrix products.

:func:`undecoded` gives a distribution that has not been computed. Whoever asks it for anything
gets scvi's own; :func:`fused_log_likelihood` asks for nothing.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scvi.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial
from scvi.nn import DecoderSCVI
from torch import Tensor, nn
from torch.distributions import Distribution

from scmixvi.core.precision import at_least_float32
from scmixvi.core.products import linear, product, transposed_product
from scmixvi.singlecell._loops import kernels
from scmixvi.singlecell._loops.compiled import available
from scmixvi.singlecell._loops.transpose import contiguous
from scmixvi.singlecell._parts.encoders import has_hooks

_SMALLEST, _LARGEST = 1e-30, 1e30  # what theta may be, so that float32 holds its reciprocal


class Heads(NamedTuple):
    """What a likelihood is computed from; log_library is `[K*B, 1]`, theta `[G]` or `[B, G]`."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    logit_weight: Tensor | None
    logit_bias: Tensor | None
    log_library: Tensor
    theta: Tensor

    def distribution(self, draws: Sequence[int] = ()) -> Distribution:
        """Scvi's own, its parameters `[*draws, B, G]`."""
        scale = at_least_float32(linear(self.hidden, self.weight, self.bias)).softmax(-1)
        rate = torch.exp(self.log_library) * scale
        scale, rate = (t.unflatten(0, (*draws, -1)) for t in (scale, rate))
        if self.logit_weight is None:
            return NegativeBinomial(mu=rate, theta=self.theta, scale=scale)
        logits = at_least_float32(linear(self.hidden, self.logit_weight, self.logit_bias))
        return ZeroInflatedNegativeBinomial(
            mu=rate,
            theta=self.theta,
            zi_logits=logits.unflatten(0, (*draws, -1)),
            scale=scale,
        )


class _Undecoded:
    """A distribution that becomes scvi's own when something is read from it."""

    def __init__(self, heads: Heads, draws: Sequence[int]) -> None:
        self.__dict__["undecoded"] = heads, tuple(draws), torch.is_grad_enabled()

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__"):
            return object.__getattribute__(self, name)
        heads, draws, with_gradients = self.__dict__["undecoded"]
        with torch.set_grad_enabled(with_gradients):
            px = heads.distribution(draws)
        del self.__dict__["undecoded"]
        self.__dict__.update(px.__dict__)
        self.__class__ = type(px)
        return getattr(self, name)


class _UndecodedNB(_Undecoded, NegativeBinomial):
    pass


class _UndecodedZINB(_Undecoded, ZeroInflatedNegativeBinomial):
    pass


def undecoded(heads: Heads, draws: Sequence[int]) -> Distribution:
    """Return `heads.distribution(draws)`, computed when something is first read from it."""
    return (_UndecodedNB if heads.logit_weight is None else _UndecodedZINB)(heads, draws)


def can_defer(decoder: nn.Module, gene_likelihood: str, dispersion: str) -> bool:
    """Whether the heads are scvi's own, so that nobody notices when they are not called."""
    if gene_likelihood not in ("zinb", "nb") or dispersion == "gene-cell":
        return False
    if type(decoder) is not DecoderSCVI or type(decoder.px_scale_decoder) is not nn.Sequential:
        return False
    if torch.compiler.is_compiling() or not available():
        return False
    scale, dropout = decoder.px_scale_decoder, decoder.px_dropout_decoder
    kinds = [type(part) for part in (*scale, dropout)]
    heads = decoder, scale, *scale, dropout
    return kinds == [nn.Linear, nn.Softmax, nn.Linear] and not has_hooks(heads)


def fused_log_likelihood(px: Distribution, x: Tensor) -> Tensor | None:
    """Log-likelihood of cells x `[B, G]` under a distribution not yet computed: `[*draws, B]`.

    None if px has been computed already, or if this is not a case for the CPU's float32 loops:
    px is computed then, so that others know it by its type.
    """
    if not isinstance(px, _Undecoded):
        return None
    heads, draws, _ = px.__dict__["undecoded"]
    found = _by_heads(heads, draws, x)
    if found is None:
        _ = px.mu
    return found


def _by_heads(heads: Heads, draws: Sequence[int], x: Tensor) -> Tensor | None:
    if not _covered(heads, x):
        return None
    largest = float(kernels.largest_count(x.contiguous().view(-1).numpy()))
    if not 0 <= largest <= _LARGEST:
        return None
    if not torch.is_grad_enabled():  # inside, a parameter would still ask for its slopes
        heads = Heads(*(None if t is None else t.detach() for t in heads))
    n_cells = len(x)
    log_library = heads.log_library.reshape(-1, n_cells)
    theta = heads.theta.reshape(-1, x.shape[1])
    value = _HeadsLikelihood.apply(*heads[:5], log_library, theta, x, largest)
    return value.reshape(*draws, n_cells) if np.isfinite(_values(value)).all() else None


def _covered(heads: Heads, x: Tensor) -> bool:
    tensors = [t for t in (*heads, x) if t is not None]
    if any(t.dtype != torch.float32 or t.device.type != "cpu" for t in tensors):
        return False
    if torch.is_autocast_enabled("cpu") or x.dim() != 2 or x.numel() == 0 or x.requires_grad:
        return False
    theta = _values(heads.theta)
    return bool(theta.min() >= _SMALLEST and theta.max() <= _LARGEST)


def _values(tensor: Tensor) -> np.ndarray:
    """The numbers of a small tensor on the CPU, of which numpy is asked sooner than torch."""
    return tensor.detach().numpy()


class _HeadsLikelihood(torch.autograd.Function):
    """(heads, log library `[K, B]`, theta `[1 or B, G]`, x `[B, G]`) -> `[K, B]`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        logit_weight: Tensor | None,
        logit_bias: Tensor | None,
        log_library: Tensor,
        theta: Tensor,
        x: Tensor,
        largest: float,
    ) -> Tensor:
        shape = (*log_library.shape, x.shape[1])
        keep = any(ctx.needs_input_grad)
        scores = product(hidden, weight)
        logits = None if logit_weight is None else product(hidden, logit_weight)
        scored = kernels.score(
            scores.view(shape),
            bias,
            None if logits is None else logits.view(shape),
            logit_bias,
            theta,
            log_library.exp(),
            x,
            largest,
            keep,
        )
        ctx.save_for_backward(hidden, weight, bias, logit_weight, logit_bias, log_library, theta, x)
        ctx.slopes = (scores, logits, scored.theta_slope, scored.library_slope) if keep else None
        return scored.value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, x = ctx.saved_tensors
        if torch.is_grad_enabled() or ctx.slopes is None:
            return (*_differentiable_gradients(Heads(*inputs), x, grad), None, None)
        hidden, weight, _, logit_weight, _, log_library, theta = inputs
        scores, logits, theta_slope, library_slope = ctx.slopes
        ctx.slopes = None
        wants = ctx.needs_input_grad
        each = grad.reshape(-1, 1)
        weighted = hidden * each
        found: list[Tensor | None] = [None] * 9
        if wants[0]:
            found[0] = product(scores, weight.T)
            if logits is not None:
                found[0].add_(product(logits, logit_weight.T))
            found[0].mul_(each)
        for slope, at in ((scores, 1), (logits, 3)):
            if slope is not None and wants[at]:
                found[at] = contiguous(transposed_product(slope, weighted))
            if slope is not None and wants[at + 1]:
                found[at + 1] = torch.mv(slope.T, each[:, 0])
        if wants[5]:
            found[5] = grad * library_slope
        if wants[6]:
            found[6] = _theta_gradient(theta_slope, grad, theta.shape)
        return tuple(found)


def _theta_gradient(slope: Tensor, grad: Tensor, shape: torch.Size) -> Tensor:
    if shape[0] == 1:
        return torch.mv(slope.flatten(0, 1).T, grad.flatten()).unsqueeze(0)
    return torch.einsum("kbg,kb->bg", slope, grad)


def _differentiable_gradients(heads: Heads, x: Tensor, grad: Tensor) -> list[Tensor | None]:
    """Gradients for `create_graph=True`, or a second time over one graph: scvi's formula."""
    inputs = [t for t in heads if t is not None and t.requires_grad]
    with torch.enable_grad():
        rows = heads._replace(log_library=heads.log_library.reshape(-1, 1))
        value = rows.distribution(grad.shape[:-1]).log_prob(x).sum(-1)
    found = iter(torch.autograd.grad(value, inputs, grad, create_graph=torch.is_grad_enabled()))
    return [next(found) if t is not None and t.requires_grad else None for t in heads]
