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

import torch
import torch.nn.functional as F
from scvi.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial
from torch import Tensor
from torch.distributions import Distribution

_EPS = 1e-8  # scvi.distributions adds it inside every logarithm
_CHUNK = 32768  # elements a thread, so that the temporaries of a chunk stay in its L2 cache
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
    if not _covered(px, x):
        return px.log_prob(x).sum(-1)
    theta = _fold(px.theta if theta is None else theta, px.mu.shape)
    logits = px.zi_logits if isinstance(px, ZeroInflatedNegativeBinomial) else None
    mu, theta, logits, counts = _same_float(px.mu, theta, logits, x)
    with torch.autocast(x.device.type, enabled=False):
        rows = (-1, *x.shape)
        logits = None if logits is None else logits.reshape(rows)
        value = _CountLikelihood.apply(mu.reshape(rows), theta, logits, counts)
    if x.device.type == "cpu" and not value.isfinite().all():
        return px.log_prob(x).sum(-1)  # parameters beyond the range of exp(), or not numbers
    return value.reshape(px.mu.shape[:-1])


def _covered(px: Distribution, x: Tensor) -> bool:
    """Whether the formulas above hold for these counts under this distribution."""
    if type(px) not in (NegativeBinomial, ZeroInflatedNegativeBinomial) or px.on_mps:
        return False
    if torch.compiler.is_compiling() or x.dim() != 2 or x.shape != px.mu.shape[-2:]:
        return False
    return px.mu.numel() > 0 and _are_counts(x)


def _are_counts(x: Tensor) -> bool:
    """Whole and not negative: asked only where the answer costs no synchronisation."""
    if x.device.type != "cpu" or not x.is_floating_point():
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


class _CountLikelihood(torch.autograd.Function):
    """(mu `[K, B, G]`, theta `[1 or K, 1 or B, G]`, logits or None, x `[B, G]`) -> `[K, B]`."""

    @staticmethod
    def forward(ctx: Any, mu: Tensor, theta: Tensor, logits: Tensor | None, x: Tensor) -> Tensor:
        wanted = ctx.needs_input_grad[:3]
        slopes = [torch.empty_like(mu) if wants else None for wants in wanted]
        constant, constant_slope = _constant(theta, x, wanted[1])
        value = _by_chunks(mu, theta, logits, x, slopes).add_(constant)
        ctx.save_for_backward(mu, theta, logits, x, *slopes, constant_slope)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        mu, theta, logits, x, d_mu, d_theta, d_logits, d_constant = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _differentiable_gradients(mu, theta, logits, x, grad)
        weight = grad.unsqueeze(-1)
        if d_theta is not None:
            d_theta = _theta_gradient(d_theta, d_constant, grad, theta.shape)
        d_mu = None if d_mu is None else d_mu * weight
        d_logits = None if d_logits is None else d_logits * weight
        return d_mu, d_theta, d_logits, None


def _differentiable_gradients(
    mu: Tensor, theta: Tensor, logits: Tensor | None, x: Tensor, grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients that have gradients themselves (`create_graph=True`): scvi's formula."""
    if logits is None:
        px = NegativeBinomial(mu=mu, theta=theta)
    else:
        px = ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=logits)
    inputs = [t for t in (mu, theta, logits) if t is not None and t.requires_grad]
    found = torch.autograd.grad(px.log_prob(x).sum(-1), inputs, grad, create_graph=True)
    by_input = dict(zip(map(id, inputs), found, strict=True))
    return (*(by_input.get(id(t)) for t in (mu, theta, logits)), None)


def _theta_gradient(slope: Tensor, constant: Tensor, grad: Tensor, shape: torch.Size) -> Tensor:
    """Gradient of theta: slopes `[K, B, G]` and `[1 or K, B, G]`, weighted and summed."""
    if shape[:2].numel() == 1:
        total = grad.flatten() @ slope.flatten(0, 1)
        total += grad.sum_to_size(constant.shape[0], grad.shape[1]).flatten() @ constant.flatten(
            0, 1
        )
        return total.reshape(shape)
    weight = grad.unsqueeze(-1)
    constant = constant * weight.sum_to_size(constant.shape[0], *weight.shape[1:])
    return (slope * weight).sum_to_size(shape).add_(constant)


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

    def at(self, k: int, rows: slice) -> "_Terms":
        """Those of some cells in one component, `[n or 1, G]` each."""
        return _Terms(*(_rows_of(tensor, k, rows) for tensor in self))


def _rows_of(tensor: Tensor, k: int, rows: slice) -> Tensor:
    tensor = tensor[k if tensor.shape[0] > 1 else 0]
    return tensor[rows] if tensor.shape[0] > 1 else tensor


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
    n_rows, n_cells, n_genes = mu.shape
    step = n_cells if mu.is_cuda else max(1, torch.get_num_threads() * _CHUNK // n_genes)
    terms, value = _terms(theta, x), mu.new_empty(n_rows, n_cells)
    scratch = mu.new_empty(7, min(step, n_cells), n_genes)
    for start in range(0, n_cells, step):
        rows = slice(start, start + step)
        for k in range(n_rows):
            d_mu, d_theta, d_logits = (None if s is None else s[k, rows] for s in slopes)
            here, work = terms.at(k, rows), scratch[:, : len(mu[k, rows])].unbind()
            if logits is None:
                _nb(mu[k, rows], here, work, d_mu, d_theta)
            else:
                _zinb(mu[k, rows], logits[k, rows], here, work, d_mu, d_theta, d_logits)
            torch.sum(work[0], dim=-1, out=value[k, rows])
    return value


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
        torch.add(at.x_scaled, at.ratio, out=spare)
        d_mu.addcmul_(spare, shrink, value=-1)
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
        value, slope = _constant_by_table(theta.flatten(), x, want_slope)
        return value.sum(-1).unsqueeze(0), slope
    value = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    slope = torch.digamma(x + theta) - torch.digamma(theta) if want_slope else None
    return value.sum(-1), slope


def _constant_by_table(theta: Tensor, x: Tensor, want_slope: bool) -> tuple[Tensor, Tensor | None]:
    """As `_constant` for theta `[G]`: sum_{k < x} log(theta + k) tabled for small counts."""
    size = int(min(x.amax().item() + 1, _TABLE))
    steps = theta + torch.arange(size - 1, dtype=theta.dtype).unsqueeze(-1)
    factorial = torch.lgamma(torch.arange(1, size + 1, dtype=theta.dtype)).unsqueeze(-1)
    place = x.clamp(max=size - 1).long().mul_(len(theta)).add_(torch.arange(len(theta)))
    value = (_running_sum(steps.log()) - factorial).take(place)
    slope = _running_sum(steps.reciprocal()).take(place) if want_slope else None
    large = (x >= size).nonzero(as_tuple=True)
    counts, theta = x[large].double(), theta[large[1]].double()  # float32 would cancel
    rising = torch.lgamma(counts + theta) - torch.lgamma(theta) - torch.lgamma(counts + 1)
    value[large] = rising.to(value.dtype)
    if slope is not None:
        slope[large] = (torch.digamma(counts + theta) - torch.digamma(theta)).to(slope.dtype)
        slope = slope.unsqueeze(0)
    return value, slope


def _running_sum(steps: Tensor) -> Tensor:
    """Sum the first 0, 1, ... rows."""
    return F.pad(steps.cumsum(0), (0, 0, 1, 0))
