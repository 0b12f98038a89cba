r"""Draws from every component and all components' scores of them, in one pass on the CPU.

With t_j = (z - mu_j) / sigma_j the scores are

.. math:: \log q_j(z) = -\sum_d \Big(\tfrac12 t_{jd}^2 + \log \sigma_{jd}\Big)
          - \tfrac D2 \log 2\pi, \qquad z = \mu_s + \sigma_s \epsilon

and nothing with axes `[L, A, S, n, D]` is ever written out, neither on the way there nor back.

What is compiled stands in this file and in :mod:`scmixvi.singlecell._loops.team`, as in
:mod:`scmixvi.singlecell._loops.kernels`.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scmixvi.singlecell._loops.compiled import available, compiled, thread_entry
from scmixvi.singlecell._loops.team import HEAD, array_at, in_parallel, next_rows
from scmixvi.singlecell._parts.distributions import MixtureOfNormals, log_standard_normal

_f = np.float32
_HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)
_A_LOGARITHM = 4  # standard deviations whose product float64 holds, whatever they are


@compiled()
def _normalizer(scale):
    """-sum log(scale) - D/2 log 2 pi."""
    total = 0.0
    for first in range(0, scale.shape[0], _A_LOGARITHM):
        product = 1.0
        for d in range(first, min(first + _A_LOGARITHM, scale.shape[0])):
            product *= np.float64(scale[d])
        total += np.log(product)
    return _f(-total - scale.shape[0] * _HALF_LOG_2_PI)


@compiled("reassoc")
def _own_draw(loc, scale, noise, z):
    """Write z; return its squared length."""
    total = _f(0)
    for d in range(z.shape[0]):
        z[d] = loc[d] + scale[d] * noise[d]
        total += z[d] * z[d]
    return total


@compiled("reassoc")
def _squared_distance(z, loc, precision):
    total = _f(0)
    for d in range(z.shape[0]):
        t = (z[d] - loc[d]) * precision[d]
        total += t * t
    return total


@compiled()
def _draw_cells(loc, scale, noise, drawn, z, scores, log_prior, precision, start, stop):
    """Cells `start` to `stop` of :func:`stratified_draws`."""
    n_components, n_latent = loc.shape[1:]
    constant = np.empty(n_components, _f)
    of_prior = _f(-n_latent * _HALF_LOG_2_PI)
    for b in range(start, stop):
        for j in range(n_components):
            constant[j] = _normalizer(scale[b, j])
            for d in range(n_latent):
                precision[b, j, d] = _f(1) / scale[b, j, d]
        for i in range(noise.shape[0]):
            for a in range(noise.shape[1]):
                s, own = drawn[a], z[i, a, b]
                length = _own_draw(loc[b, s], scale[b, s], noise[i, a, b], own)
                log_prior[i, a, b] = of_prior - _f(0.5) * length
                for j in range(n_components):
                    distance = _squared_distance(own, loc[b, j], precision[b, j])
                    scores[i, a, j, b] = constant[j] - _f(0.5) * distance


@compiled()
def _pull(z, loc, precision, grad, of_z, of_loc, of_scale):
    """Add the gradients of one score."""
    for d in range(z.shape[0]):
        t = (z[d] - loc[d]) * precision[d]
        slope = grad * precision[d]
        of_z[d] -= slope * t
        of_loc[d] += slope * t
        of_scale[d] += slope * (t * t - _f(1))


@compiled()
def _pull_own(z, noise, of_prior, of_z, of_loc, of_scale):
    """Add what the draw itself passes on to its component."""
    for d in range(z.shape[0]):
        slope = of_z[d] - of_prior * z[d]
        of_loc[d] += slope
        of_scale[d] += slope * noise[d]


@compiled()
def _pull_cells(
    loc, noise, drawn, z, precision, of_scores, of_prior, of_z, of_loc, of_scale, start, stop
):
    """Gradients of cells `start` to `stop`; those of z are changed on the way."""
    n_components = loc.shape[1]
    of_loc[start:stop], of_scale[start:stop] = _f(0), _f(0)
    for b in range(start, stop):
        for i in range(noise.shape[0]):
            for a in range(noise.shape[1]):
                s, own, of_own = drawn[a], z[i, a, b], of_z[i, a, b]
                for j in range(n_components):
                    grad = of_scores[i, a, j, b]
                    _pull(
                        own, loc[b, j], precision[b, j], grad, of_own, of_loc[b, j], of_scale[b, j]
                    )
                pull = of_prior[i, a, b]
                _pull_own(own, noise[i, a, b], pull, of_own, of_loc[b, s], of_scale[b, s])


@compiled()
def _arrays(block):
    """Means, noise, components, z, precisions, scores and log priors, or their gradients."""
    n_samples, n_drawn, n_components, n_cells, n_latent = block[:5]
    at = block[5:]
    by_cell, by_draw = (n_cells, n_components, n_latent), (n_samples, n_drawn, n_cells, n_latent)
    return (
        array_at(at[0], by_cell, np.float32),
        array_at(at[1], by_draw, np.float32),
        array_at(at[2], n_drawn, np.int64),
        array_at(at[3], by_draw, np.float32),
        array_at(at[4], by_cell, np.float32),
        array_at(at[5], (n_samples, n_drawn, n_components, n_cells), np.float32),
        array_at(at[6], (n_samples, n_drawn, n_cells), np.float32),
    )


@thread_entry
def _draw_entry(address):
    block = array_at(address, HEAD + 13, np.int64)[HEAD:]
    loc, noise, drawn, z, precision, scores, log_prior = _arrays(block)
    scale = array_at(block[12], loc.shape, np.float32)
    while True:
        start, stop = next_rows(address)
        if start >= stop:
            return
        _draw_cells(loc, scale, noise, drawn, z, scores, log_prior, precision, start, stop)


@thread_entry
def _pull_entry(address):
    block = array_at(address, HEAD + 15, np.int64)[HEAD:]
    loc, noise, drawn, z, precision, of_scores, of_prior = _arrays(block)
    of_z = array_at(block[12], z.shape, np.float32)
    of_loc = array_at(block[13], loc.shape, np.float32)
    of_scale = array_at(block[14], loc.shape, np.float32)
    while True:
        start, stop = next_rows(address)
        if start >= stop:
            return
        _pull_cells(
            *(loc, noise, drawn, z, precision, of_scores, of_prior, of_z, of_loc, of_scale),
            start,
            stop,
        )


def _run(entry: Any, noise: Tensor, n_components: int, used: list[Tensor]) -> None:
    n_samples, n_drawn, n_cells, n_latent = noise.shape
    sizes = n_samples, n_drawn, n_components, n_cells, n_latent
    in_parallel(entry, n_cells, [*sizes, *(tensor.data_ptr() for tensor in used)])


def stratified_draws(
    qz: MixtureOfNormals, n_samples: int, drawn: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw L times from every component, or from some, and score the draws.

    Parameters
    ----------
    qz
        S components of D latents for n cells.
    n_samples
        L.
    drawn
        `[A]`, the components to draw from; None is all S, in order.

    Returns
    -------
    u: draws `[L, A, n, D]`, before any transformation.
    log_q_all: their scores under every component, `[L, A, S, n]`, in nats.
    log_prior: log N(u; 0, I), `[L, A, n]`.
    """
    loc, scale = qz.c_loc, qz.c_scale
    if not _suits(loc, scale):
        (u,), scores = qz.posterior.sample_stratified(n_samples, drawn)
        return u, scores, log_standard_normal(u)
    n_cells, n_components, n_latent = loc.shape
    if drawn is None:
        drawn = torch.arange(n_components, device=loc.device)
    shape = n_samples, len(drawn), n_cells, n_latent
    noise = torch.randn(shape, dtype=loc.dtype, device=loc.device)
    return _Draws.apply(loc, scale, noise, drawn)


def _suits(*parameters: Tensor) -> bool:
    if torch.compiler.is_compiling() or not available():
        return False
    return all(
        p.dtype is torch.float32 and p.device.type == "cpu" and p.numel() > 0 for p in parameters
    )


class _Draws(torch.autograd.Function):
    """(means and standard deviations `[n, S, D]`, noise `[L, A, n, D]`, drawn `[A]`)."""

    @staticmethod
    def forward(
        ctx: Any, loc: Tensor, scale: Tensor, noise: Tensor, drawn: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        n_components = loc.shape[1]
        near, wide = loc.contiguous(), scale.contiguous()
        z, precision = torch.empty_like(noise), torch.empty_like(near)
        log_prior = noise.new_empty(noise.shape[:3])
        scores = noise.new_empty(*noise.shape[:2], n_components, noise.shape[2])
        used = [near, noise, drawn, z, precision, scores, log_prior, wide]
        _run(_draw_entry, noise, n_components, used)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(loc, scale, noise, drawn, z, precision)
        return z, scores, log_prior

    @staticmethod
    def backward(
        ctx: Any, of_z: Tensor, of_scores: Tensor, of_prior: Tensor
    ) -> tuple[Tensor | None, ...]:
        loc, scale, noise, drawn, z, precision = ctx.saved_tensors
        if torch.is_grad_enabled():
            grads = of_z, of_scores, of_prior
            return (*_differentiable_gradients(loc, scale, noise, drawn, grads), None, None)
        of_loc, of_scale = torch.empty_like(precision), torch.empty_like(precision)
        changed = of_z.clone(memory_format=torch.contiguous_format)
        given = of_scores.contiguous(), of_prior.contiguous(), changed
        used = [loc.contiguous(), noise, drawn, z, precision, *given, of_loc, of_scale]
        _run(_pull_entry, noise, loc.shape[1], used)
        return of_loc, of_scale, None, None


def _differentiable_gradients(
    loc: Tensor, scale: Tensor, noise: Tensor, drawn: Tensor, grads: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    """Gradients for `create_graph=True`, by torch's operations."""
    with torch.enable_grad():
        means, widths = loc.transpose(0, 1), scale.transpose(0, 1)
        z = means[drawn] + widths[drawn] * noise
        t = (z.unsqueeze(2) - means) / widths
        scores = -(0.5 * t.square() + widths.log() + _HALF_LOG_2_PI).sum(-1)
        found = z, scores, log_standard_normal(z)
    inputs = [p for p in (loc, scale) if p.requires_grad]
    slopes = iter(torch.autograd.grad(found, inputs, grads, create_graph=True))
    return tuple(next(slopes) if p.requires_grad else None for p in (loc, scale))
