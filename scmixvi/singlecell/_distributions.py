"""The mixture posterior in the shape that scvi-tools expects of `qz`."""

import math

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

    @property
    def posterior(self) -> MixturePosterior:
        """The same mixture as the core sees it, with components before cells."""
        loc, scale = self.c_loc.transpose(0, 1), self.c_scale.transpose(0, 1)
        # Parameters come from the networks here: checking them again costs more than the draw.
        normal = Independent(Normal(loc, scale, validate_args=False), 1, validate_args=False)
        return MixturePosterior([Stage(lambda: normal)], self.c_log_weights.T)

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

        Systematic sampling: k draws take the components at the k points u, u + 1/k, ... (mod 1)
        of the weights' distribution function, with one random phase u a cell. Every draw by
        itself follows the mixture exactly, and averages over draws vary less.
        """
        shape = torch.Size(sample_shape)
        n_draws = shape.numel()
        steps = torch.arange(n_draws, device=self.c_loc.device) / max(n_draws, 1)
        phase = torch.rand(len(self.c_loc), device=self.c_loc.device)
        points = (steps.unsqueeze(1) + phase) % 1.0
        cumulative = self.c_log_weights.float().exp().cumsum(-1)[:, :-1].contiguous()
        component = torch.searchsorted(cumulative, points.T.contiguous(), right=True)
        index = component.unsqueeze(-1).expand(-1, -1, self.c_loc.shape[-1])
        loc, scale = self.c_loc.gather(1, index), self.c_scale.gather(1, index)
        draws = (loc + scale * torch.randn_like(loc)).transpose(0, 1)
        return draws.reshape(*shape, *self.batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of `value` `[..., n, D]`: `[..., n, 1]`, in nats."""
        normal = Normal(self.c_loc, self.c_scale, validate_args=False)
        log_q = normal.log_prob(value.unsqueeze(-2)).sum(-1)
        return torch.logsumexp(log_q + self.c_log_weights, dim=-1, keepdim=True)

    @property
    def _weights(self) -> Tensor:
        return self.c_log_weights.exp().unsqueeze(-1)
