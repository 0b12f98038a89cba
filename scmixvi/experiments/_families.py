"""The best posterior that a family has for one input, for experiments on the variational gap."""

from collections.abc import Callable

import torch
from pyro.distributions import MultivariateStudentT
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal

from scmixvi.core import (
    Ascent,
    MixturePosterior,
    Stage,
    fit_posterior,
    fitted_gaussians,
    log_mixture,
)
from scmixvi.singlecell._queries.evidence import DEGREES_OF_FREEDOM

FAMILIES = ("one Gaussian", "full covariance", "four Gaussians")
N_COMPONENTS = {"one Gaussian": 1, "four Gaussians": 4}
ASCENT = Ascent(0.03, (0.9, 0.999), 10)  # shorter steps and a longer memory: closer to the optimum

LogJoint = Callable[[Tensor], Tensor]


def gaussians(loc: Tensor, scale: Tensor) -> MixturePosterior:
    """Uniform mixture of diagonal Gaussians `[S, B, D]`."""
    base = Independent(Normal(loc, scale, validate_args=False), 1, validate_args=False)
    return MixturePosterior([Stage(lambda: base)])


def best(
    family: str, loc: Tensor, scale: Tensor, log_joint: LogJoint, n_steps: int
) -> MixturePosterior:
    """The posterior of a family that is fitted to every input.

    Parameters
    ----------
    family
        One of `FAMILIES`: one Gaussian with diagonal or full covariance, or a uniform mixture of
        four diagonal ones.
    loc, scale
        Where the encoders put their components, `[S, B, D]`: the start.
    log_joint
        From z `[L, S, B, D]` to log p(x, z) `[L, S, B]`.
    n_steps
        Gradient steps.
    """
    if family == "full covariance":
        return _full_covariance(loc[:1], scale[:1], log_joint, n_steps)
    start = [s % len(loc) for s in range(N_COMPONENTS[family])]
    crowded = len(start) > len(loc)
    loc, scale = loc[start], scale[start]
    if crowded:  # several at one place would stay together
        loc = loc + 0.5 * scale * torch.randn_like(loc)
    return gaussians(*fitted_gaussians(loc, scale, log_joint, n_steps, ascent=ASCENT))


def _full_covariance(
    loc: Tensor, scale: Tensor, log_joint: LogJoint, n_steps: int
) -> MixturePosterior:
    parameters = [loc.clone(), scale.log(), loc.new_zeros(*loc.shape, loc.shape[-1])]
    parameters = [p.requires_grad_() for p in parameters]

    def posterior(loc: Tensor, log_scale: Tensor, lower: Tensor) -> MixturePosterior:
        unit = lower.tril(-1) + torch.eye(loc.shape[-1]).to(lower)
        triangle = unit * log_scale.exp().unsqueeze(-1)
        base = MultivariateNormal(loc, scale_tril=triangle, validate_args=False)
        return MixturePosterior([Stage(lambda: base)])

    fit_posterior(posterior, parameters, log_joint, n_steps, ASCENT)
    return posterior(*(p.detach() for p in parameters))


def weighted_draws(
    full_covariance: MixturePosterior, log_joint: LogJoint, n_draws: int
) -> tuple[Tensor, Tensor]:
    """Draws `[n, B, D]` of a Student distribution like a fitted Gaussian, and log weights `[n, B]`.

    Weighted, they are the exact posterior's; the mean of the weights is p(x).
    """
    fitted = full_covariance.stages[0].conditional()
    degrees = torch.tensor(DEGREES_OF_FREEDOM).to(fitted.loc)
    wider = MultivariateStudentT(degrees, fitted.loc[0], fitted.scale_tril[0])
    z = wider.sample((n_draws,))
    return z, log_joint(z.unsqueeze(1))[:, 0].double() - wider.log_prob(z)


def bound_of(posterior: MixturePosterior, log_joint: LogJoint, n_draws: int) -> Tensor:
    """MISELBO at L = 1 with uniform weights, the mean over draws, `[B]`."""
    (z,), log_q_all = posterior.sample_stratified(n_draws)
    return (log_joint(z) - log_mixture(log_q_all)).mean((0, 1))
