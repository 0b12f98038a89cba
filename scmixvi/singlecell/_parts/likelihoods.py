r"""Log-likelihood of counts, once for all components, with gradients from the same pass.

One letter has one meaning: K rows of components and samples (L * S), B cells, G genes.

With inverse dispersion theta, mean mu and scvi's eps = 1e-8, everything that depends on z enters
through v = mu / (theta + eps):

.. math::
    \log NB(x) = x \log\left(v + \tfrac{\epsilon}{\theta + \epsilon}\right)
                 - (x + \theta) \log(1 + v) + c(x, \theta),
    \qquad c = \log\Gamma(x + \theta) - \log\Gamma(\theta) - \log\Gamma(x + 1)

so c is computed once whatever K. With zero inflation logit pi and q = pi + theta log(1 + v),

.. math::
    \log ZINB(0) = \log \frac{\sigma(\pi)}{\sigma(q)}, \qquad
    \log ZINB(x) = \log \sigma(\pi) - \pi + \log NB(x) \quad (x > 0).

Derivatives of all of it are rational in the same quantities, so the forward pass leaves them
behind and the backward pass is one product.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from scvi.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.functional import softplus

from scmixvi.core.objectives import can_look_at
from scmixvi.singlecell._parts.decoded import fused_log_likelihood

_EPS = 1e-8  # scvi.distributions adds it inside every logarithm
_CHUNK = 32768  # elements a thread, so that the temporaries of a chunk stay in its L2 cache
_CHUNK_ON_GPU = 2**22  # elements of a temporary, where every operation more is one more launch
_TABLE = 64  # counts below this come from a table; in single-cell data that is 99 % of them


def log_likelihood(px: Distribution, x: Tensor, theta: Tensor | None = None) -> Tensor:
    r"""Log-likelihood of every cell: `px.log_prob(x).sum(-1)`, faster and in less memory.

    Parameters
    ----------
    px
        One of scvi's count distributions; its parameters are `[K, B, G]` or `[B, G]`.
    x
        `[B, G]`, counts.
    theta
        Inverse dispersion of `px` before it was broadcast: `[G]`, `[B, G]` or `[K, B, G]`. With
        it the terms that do not depend on z are computed once, not K times.

    Returns
    -------
    `[K, B]` or `[B]`, in nats. Values and gradients with respect to the mean, `theta` and the
    zero inflation logits are those of `px.log_prob`, whose own code runs for whatever is not
    covered here and for second derivatives. Half precision is computed in float32.

    Raises
    ------
    ValueError
        If `theta` does not broadcast to the shape of the parameters of `px`.
    """
    fused = fused_log_likelihood(px, x)
    if fused is not None:
        return fused
    if not _covered(px, x):
        return px.log_prob(x).sum(-1)
    theta = _fold(px.theta if theta is None else theta, px.mu.shape)
    logits = px.zi_logits if isinstance(px, ZeroInflatedNegativeBinomial) else None
    mu, theta, logits, counts = _same_float(px.mu, theta, logits, x)
    compiling = torch.compiler.is_compiling()
    with torch.autocast(x.device.type, enabled=False):
        rows = (-1, *x.shape)
        logits = None if logits is None else logits.reshape(rows)
        found = _by_formula if compiling else _CountLikelihood.apply
        value = found(mu.reshape(rows), theta, logits, counts)
    if compiling:
        return value.reshape(px.mu.shape[:-1])
    if x.device.type == "cpu" and not value.isfinite().all():
        return px.log_prob(x).sum(-1)  # parameters beyond the range of exp(), or not numbers
    return value.reshape(px.mu.shape[:-1])


def _covered(px: Distribution, x: Tensor) -> bool:
    """Whether the formulas above hold for these counts under this distribution."""
    if type(px) not in (NegativeBinomial, ZeroInflatedNegativeBinomial) or px.on_mps:
        return False
    if x.dim() != 2 or x.shape != px.mu.shape[-2:]:
        return False
    return px.mu.numel() > 0 and _are_counts(x)


def _are_counts(x: Tensor) -> bool:
    """Whole and not negative: asked only where the answer costs no synchronisation."""
    if not can_look_at(x) or not x.is_floating_point():
        return x.is_floating_point()
    return bool(x.amin() >= 0) and bool(x.frac().amax() == 0)


def _fold(theta: Tensor, shape: torch.Size) -> Tensor:
    """View theta as `[1, 1, G]`, `[1, B, G]` or `[K, B, G]`."""
    theta = theta.reshape((1,) * (len(shape) - theta.dim()) + theta.shape)
    if any(size not in (1, wanted) for size, wanted in zip(theta.shape, shape, strict=False)):
        raise ValueError(
            f"theta must broadcast to the parameters of px, {tuple(shape)}, but its shape is "
            f"{tuple(theta.shape)}: pass it as [G], [B, G] or [K, B, G]."
        )
    if theta.shape[:-1].numel() == 1:
        return theta.reshape(1, 1, -1).expand(1, 1, shape[-1])
    lead = shape[:-2] if theta.shape[:-2].numel() > 1 else theta.shape[:-2]
    return theta.expand(*lead, *shape[-2:]).reshape(-1, *shape[-2:])


def _same_float(*tensors: Tensor | None) -> list[Tensor | None]:
    """Cast to the widest floating type among them, float32 at least."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = dtype if tensor is None else torch.promote_types(dtype, tensor.dtype)
    return [None if tensor is None else tensor.to(dtype) for tensor in tensors]


def _by_formula(mu: Tensor, theta: Tensor, logits: Tensor | None, x: Tensor) -> Tensor:
    """As `_CountLikelihood`, for a compiler, which fuses it and derives the gradients by itself."""
    inverse = (theta + _EPS).reciprocal()
    v = mu * inverse
    log1p = torch.log1p(v)
    value = x * (torch.log(v + _EPS * inverse) - log1p)
    gone = theta * log1p
    if logits is None:
        value = value - gone
    else:
        kept = -logits - gone
        value = torch.where(x > _EPS, value + kept, softplus(kept)) - softplus(-logits)
    constant, _ = _constant_by_gamma(theta, x, False)
    return value.sum(-1) + constant


class _CountLikelihood(torch.autograd.Function):
    """(mu `[K, B, G]`, theta `[1 or K, 1 or B, G]`, logits or None, x `[B, G]`) -> `[K, B]`."""

    @staticmethod
    def forward(ctx: Any, mu: Tensor, theta: Tensor, logits: Tensor | None, x: Tensor) -> Tensor:
        slopes = [torch.empty_like(mu) if wants else None for wants in ctx.needs_input_grad[:3]]
        constant, constant_slope = _constant(theta, x, slopes[1] is not None)
        ctx.save_for_backward(mu, theta, logits, x)
        ctx.slopes = (*slopes, constant_slope)
        return _by_chunks(mu, theta, logits, x, slopes).add_(constant)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        mu, theta, logits, x = ctx.saved_tensors
        if torch.is_grad_enabled() or ctx.slopes is None:
            return _differentiable_gradients(mu, theta, logits, x, grad)
        d_mu, d_theta, d_logits, d_constant = ctx.slopes
        ctx.slopes = None  # they become the gradients
        weight = grad.unsqueeze(-1)
        for slope in (d_mu, d_logits):
            if slope is not None:
                slope.mul_(weight)
        if d_theta is not None:
            d_theta = _theta_gradient(d_theta, d_constant, grad, theta.shape)
        return d_mu, d_theta, d_logits, None


def _differentiable_gradients(
    mu: Tensor, theta: Tensor, logits: Tensor | None, x: Tensor, grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients for `create_graph=True`, or a second time over one graph: scvi's formula."""
    inputs = [t for t in (mu, theta, logits) if t is not None and t.requires_grad]
    with torch.enable_grad():
        if logits is None:
            px = NegativeBinomial(mu=mu, theta=theta)
        else:
            px = ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=logits)
        value = px.log_prob(x).sum(-1)
    found = torch.autograd.grad(value, inputs, grad, create_graph=torch.is_grad_enabled())
    by_input = dict(zip(map(id, inputs), found, strict=True))
    return (*(by_input.get(id(t)) for t in (mu, theta, logits)), None)


def _theta_gradient(slope: Tensor, constant: Tensor, grad: Tensor, shape: torch.Size) -> Tensor:
    """Gradient of theta: slopes `[K, B, G]` and `[1 or K, B, G]`, weighted and summed."""
    pooled = grad.sum_to_size(constant.shape[0], grad.shape[1])
    if shape[:2].numel() == 1:
        total = grad.flatten() @ slope.flatten(0, 1)
        return total.add_(pooled.flatten() @ constant.flatten(0, 1)).reshape(shape)
    total = slope.mul_(grad.unsqueeze(-1)).sum_to_size(shape)
    return total.addcmul_(constant, pooled.unsqueeze(-1))


class _Terms(NamedTuple):
    """What does not depend on z, `[1 or K, 1 or B, G]` each."""

    theta: Tensor
    inverse: Tensor  # 1 / (theta + eps)
    ratio: Tensor  # theta / (theta + eps)
    floor: Tensor  # eps / (theta + eps)
    x: Tensor
    x_scaled: Tensor  # x / (theta + eps)
    nonzero: Tensor  # 1. where x > 0, else 0.
    zero: Tensor

    def at_rows(self, rows: slice) -> "_Terms":
        """Those of some cells."""
        return _Terms(*(t if t.shape[1] == 1 else t[:, rows] for t in self))

    def at_draws(self, draws: slice) -> "_Terms":
        """Those of some of the K rows of draws."""
        return _Terms(*(t if t.shape[0] == 1 else t[draws] for t in self))


def _terms(theta: Tensor, x: Tensor) -> _Terms:
    x = x.unsqueeze(0)
    inverse = (theta + _EPS).reciprocal_()
    nonzero = (x > _EPS).to(x.dtype)
    return _Terms(
        theta, inverse, theta * inverse, _EPS * inverse, x, x * inverse, nonzero, 1 - nonzero
    )


def _by_chunks(
    mu: Tensor, theta: Tensor, logits: Tensor | None, x: Tensor, slopes: list[Tensor | None]
) -> Tensor:
    """Sum over genes of what depends on z, `[K, B]`; fills the slopes that are wanted."""
    n_rows, n_cells, _ = mu.shape
    rows_a_time, cells_a_time = _chunk(mu)
    terms, value = _terms(theta, x), mu.new_empty(n_rows, n_cells)
    scratch = mu.new_empty(7, rows_a_time, cells_a_time, mu.shape[-1])
    for start in range(0, n_cells, cells_a_time):
        cells = slice(start, min(start + cells_a_time, n_cells))
        nearby = terms.at_rows(cells)
        for first in range(0, n_rows, rows_a_time):
            draws = slice(first, min(first + rows_a_time, n_rows))
            d_mu, d_theta, d_logits = (None if s is None else s[draws, cells] for s in slopes)
            here = nearby.at_draws(draws)
            work = scratch[:, : draws.stop - first, : cells.stop - start].unbind()
            if logits is None:
                _nb(mu[draws, cells], here, work, d_mu, d_theta)
            else:
                _zinb(mu[draws, cells], logits[draws, cells], here, work, d_mu, d_theta, d_logits)
            torch.sum(work[0], dim=-1, out=value[draws, cells])
    return value


def _chunk(mu: Tensor) -> tuple[int, int]:
    """How many of K rows of draws, and how many cells, a step of the loop takes."""
    n_rows, n_cells, n_genes = mu.shape
    if mu.device.type != "cpu":
        return min(n_rows, max(1, _CHUNK_ON_GPU // (n_cells * n_genes))), n_cells
    return 1, min(n_cells, max(1, torch.get_num_threads() * _CHUNK // n_genes))


def _common(mu: Tensor, at: _Terms, work: tuple[Tensor, ...], d_mu: Tensor | None) -> None:
    """Leave x log((mu + eps) / (theta + mu + eps)), v, 1 / (1 + v), log(1 + v) in `work`."""
    value, v, shrink, log1p, spare = work[:5]
    torch.mul(mu, at.inverse, out=v)
    torch.add(v, 1, out=shrink)
    torch.log(shrink, out=log1p)
    torch.sub(shrink, 1, out=spare)
    torch.sub(v, spare, out=spare)  # what rounding took from 1 + v
    log1p.addcmul_(spare, shrink.reciprocal_())
    torch.add(v, at.floor, out=value)
    if d_mu is not None:
        torch.div(at.x_scaled, value, out=d_mu)
    value.log_().sub_(log1p).mul_(at.x)


def _nb(
    mu: Tensor,
    at: _Terms,
    work: tuple[Tensor, ...],
    d_mu: Tensor | None,
    d_theta: Tensor | None,
) -> None:
    _common(mu, at, work, d_mu)
    value, v, shrink, log1p, spare = work[:5]
    value.addcmul_(at.theta, log1p, value=-1)
    if d_mu is not None:
        spare = spare[: max(len(at.x_scaled), len(at.ratio))]
        d_mu.addcmul_(torch.add(at.x_scaled, at.ratio, out=spare), shrink, value=-1)
    if d_theta is not None:
        torch.mul(v, at.ratio, out=d_theta).sub_(at.x_scaled).mul_(shrink).sub_(log1p)


def _zinb(
    mu: Tensor,
    logits: Tensor,
    at: _Terms,
    work: tuple[Tensor, ...],
    d_mu: Tensor | None,
    d_theta: Tensor | None,
    d_logits: Tensor | None,
) -> None:
    _common(mu, at, work, d_mu)
    value, v, shrink, log1p, spare, share, other = work
    torch.addcmul(logits, at.theta, log1p, out=spare)
    value.addcmul_(at.nonzero, spare, value=-1)
    spare.sigmoid_().mul_(at.zero)
    torch.sigmoid(logits, out=share)
    if d_logits is not None:
        torch.sub(spare, share, out=d_logits)
    value.add_(share.div_(torch.add(spare, at.nonzero, out=other)).log_())
    # 1 - spare is the share of the negative binomial in the probability of x: 1 where x > 0
    torch.addcmul(at.ratio, at.ratio, spare, value=-1, out=share)
    if d_mu is not None:
        torch.add(share, at.x_scaled, out=other)
        d_mu.addcmul_(other, shrink, value=-1)
    if d_theta is not None:
        torch.mul(share, v, out=d_theta).sub_(at.x_scaled).mul_(shrink)
        d_theta.sub_(log1p).addcmul_(spare, log1p)


def _constant(theta: Tensor, x: Tensor, want_slope: bool) -> tuple[Tensor, Tensor | None]:
    """Sum over genes of log Gamma(x + theta) / Gamma(theta) / x!, and its slopes in theta."""
    if x.device.type == "cpu" and theta.shape[:2].numel() == 1:
        return _constant_by_table(theta.flatten(), x)
    return _constant_by_gamma(theta, x, want_slope)


def _constant_by_gamma(theta: Tensor, x: Tensor, want_slope: bool) -> tuple[Tensor, Tensor | None]:
    value = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    slope = torch.digamma(x + theta) - torch.digamma(theta) if want_slope else None
    return value.sum(-1), slope


def _constant_by_table(theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """As `_constant` for theta `[G]`: sum_{k < x} log(theta + k) tabled for small counts.

    Value and slope are one complex number, so that each count is looked up once.
    """
    n_genes, size = len(theta), int(min(x.max().item() + 1, _TABLE))
    table = theta.new_zeros(size, n_genes, 2)
    counts = torch.arange(size, dtype=theta.dtype).unsqueeze(-1)
    steps = theta + counts[:-1]
    torch.cumsum(steps.log(), 0, out=table[1:, :, 0])
    torch.cumsum(steps.reciprocal_(), 0, out=table[1:, :, 1])
    table[:, :, 0] -= torch.lgamma(counts + 1)
    place = x.clamp(max=size - 1).int().mul_(n_genes).add_(torch.arange(n_genes)).flatten()
    found = torch.view_as_complex(table).flatten().index_select(0, place)
    large = torch.from_numpy(np.flatnonzero(x.numpy() >= size))
    found[large] = _large_counts(theta, x.flatten(), large).to(found.dtype)
    value, slope = torch.view_as_real(found).unflatten(0, (1, *x.shape)).unbind(-1)
    return value.sum(-1), slope


def _large_counts(theta: Tensor, x: Tensor, where: Tensor) -> Tensor:
    """Value and slope of the constant, one complex number a count, in float64."""
    x, theta = x[where].double(), theta[where % len(theta)].double()
    value = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    return torch.complex(value, torch.digamma(x + theta) - torch.digamma(theta))
