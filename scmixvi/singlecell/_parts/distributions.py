"""The mixture posterior in the shape that scvi-tools expects of `qz`."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, constraints

from scmixvi.core import MixturePosterior, Stage


class MixtureOfNormals(Distribution):
    r"""Mixture of S diagonal Gaussians for each cell, :math:`\sum_s \pi_s N(\mu_s, \sigma_s^2)`.

    Cells are on axis 0 of every parameter, so that scvi-tools can concatenate and select cells.
    `loc` and `scale` are the mean and standard deviation of the mixture, so that code written
    for one Gaussian gets its moments right. `log_prob` keeps a last axis of length 1: the usual
    `qz.log_prob(z).sum(-1)` is then the joint density and not a sum over cells.

    Parameters
    ----------
    c_loc, c_scale
        Component means and standard deviations, `[n, S, D]`.
    c_log_weights
        Log mixture weights, `[n, S]`, normalised over S; None is uniform.
    validate_args
        As in :class:`torch.distributions.Distribution`.
    """

    arg_constraints = {
        "c_loc": constraints.independent(constraints.real, 2),
        "c_scale": constraints.independent(constraints.positive, 2),
        "c_log_weights": constraints.independent(constraints.less_than(1e-6), 1),
    }
    support = constraints.real
    has_rsample = False

    def __init__(
        self,
        c_loc: Tensor,
        c_scale: Tensor,
        c_log_weights: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.c_loc, self.c_scale = c_loc, c_scale
        n_cells, n_components, n_latent = c_loc.shape
        if c_log_weights is None:
            c_log_weights = c_loc.new_full((n_cells, n_components), -math.log(n_components))
        self.c_log_weights = c_log_weights
        super().__init__(torch.Size((n_cells, n_latent)), validate_args=validate_args)

    @classmethod
    def joined(cls, parts: Sequence["MixtureOfNormals"], dim: int = 0) -> "MixtureOfNormals":
        """Cells side by side (`dim` 0), or the components of the same cells (`dim` 1).

        Weights of components side by side are then still to be normalised.
        """
        names = ("c_loc", "c_scale", "c_log_weights")
        joined = (torch.cat([getattr(part, name) for part in parts], dim) for name in names)
        return cls(*joined, validate_args=False)

    @property
    def posterior(self) -> MixturePosterior:
        """The same mixture as the core sees it, with components before cells."""
        loc, scale = self.c_loc.transpose(0, 1), self.c_scale.transpose(0, 1)
        # Parameters come from the networks here: checking them again costs more than the draw.
        normal = Independent(Normal(loc, scale, validate_args=False), 1, validate_args=False)
        return MixturePosterior([Stage(lambda: normal)], self.c_log_weights.T)

    def rows(self, cells: slice) -> "MixtureOfNormals":
        """The posteriors of some of the cells."""
        parts = (p[cells] for p in (self.c_loc, self.c_scale, self.c_log_weights))
        return MixtureOfNormals(*parts, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Mean of the mixture, `[n, D]`."""
        return (self._weights * self.c_loc).sum(1)

    @property
    def variance(self) -> Tensor:
        """Variance of the mixture, within plus between components, `[n, D]`."""
        between = (self.c_loc - self.mean.unsqueeze(1)).square()
        return (self._weights * (self.c_scale.square() + between)).sum(1)

    @property
    def loc(self) -> Tensor:
        """Mean of the mixture, `[n, D]`."""
        return self.mean

    @property
    def scale(self) -> Tensor:
        """Standard deviation of the mixture, `[n, D]`."""
        return self.variance.sqrt()

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw `[*sample_shape, n, D]`; a cell's draws are spread evenly over its components.

        The i-th draw takes the component at point (u + v_i) mod 1 of the weights' distribution
        function: u is one random phase a cell, v_i the radical inverse of i in base S (van der
        Corput's sequence). Every draw by itself follows the mixture exactly; with uniform weights
        any S draws in a row come from S different components, and with any weights the shares
        approach them as 1/k and not as 1/sqrt(k).
        """
        shape = torch.Size(sample_shape)
        points = _radical_inverses(shape.numel(), base=max(2, self.c_loc.shape[1]))
        phase = torch.rand(len(self.c_loc), 1, device=self.c_loc.device)
        points = (points.to(phase) + phase) % 1.0
        cumulative = self.c_log_weights.float().exp().cumsum(-1)[:, :-1].contiguous()
        component = torch.searchsorted(cumulative, points, right=True).unsqueeze(-1)
        index = component.expand(-1, -1, self.c_loc.shape[-1])
        loc, scale = (p.gather(1, index).transpose(0, 1) for p in (self.c_loc, self.c_scale))
        noise = torch.randn(loc.shape, dtype=loc.dtype, device=loc.device)
        return (loc + scale * noise).reshape(*shape, *self.batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of `value` `[..., n, D]`: `[..., n, 1]`, in nats."""
        normal = Normal(self.c_loc, self.c_scale, validate_args=False)
        log_q = normal.log_prob(value.unsqueeze(-2)).sum(-1)
        return torch.logsumexp(log_q + self.c_log_weights, dim=-1, keepdim=True)

    @property
    def _weights(self) -> Tensor:
        return self.c_log_weights.exp().unsqueeze(-1)


def with_library(qz: MixtureOfNormals, ql: Normal | None) -> MixtureOfNormals:
    """q(z, l | x), log l last: z and l are independent in every component, l alike in all.

    Where library sizes are observed, `ql` None, it is q(z | x).
    """
    if ql is None:
        return qz
    alike = (p.unsqueeze(1).expand(-1, qz.c_loc.shape[1], -1) for p in (ql.loc, ql.scale))
    parts = zip((qz.c_loc, qz.c_scale), alike, strict=True)
    c_loc, c_scale = (torch.cat(part, dim=-1) for part in parts)
    return MixtureOfNormals(c_loc, c_scale, qz.c_log_weights, validate_args=False)


def without_library(q: MixtureOfNormals, n_latent: int) -> tuple[MixtureOfNormals, Normal | None]:
    """What :func:`with_library` was made of: q(z | x) of D latents, and q(l | x) if it has one."""
    (loc, scale), library = (
        [p[..., columns] for p in (q.c_loc, q.c_scale)]
        for columns in (slice(n_latent), slice(n_latent, None))
    )
    qz = MixtureOfNormals(loc, scale, q.c_log_weights, validate_args=False)
    if library[0].shape[-1] == 0:
        return qz, None
    return qz, Normal(*(p[:, 0] for p in library), validate_args=False)


def log_standard_normal(u: Tensor) -> Tensor:
    """Log N(u; 0, I), summed over the last axis."""
    return -0.5 * (u.square().sum(-1) + u.shape[-1] * math.log(2 * math.pi))


def _radical_inverses(n: int, base: int) -> Tensor:
    """Mirror the base's digits of 0, 1, ..., n - 1 at the point: `[n]`, in [0, 1)."""
    index, largest = torch.arange(n), n - 1
    inverse, place = torch.zeros(n, dtype=torch.float64), 1.0 / base
    while largest > 0:
        inverse += place * (index % base)
        index //= base
        largest //= base
        place /= base
    return inverse
